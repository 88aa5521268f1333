"""Medians, ratios and the table of them."""

from statistics import median


def rows(test, samples, reference):
    """One row for every configuration of `samples`, best of the reference engine first; its label begins with `reference`.

    A ratio above 1 is better than the reference's best: faster, or smaller.
    """
    medians = {label: median(values) for label, values in samples.items()}
    references = [label for label in medians if label.startswith(reference)]
    best = (max if test.more_is_better else min)(references, key=medians.get, default=None)

    def ratio(label):
        if best is None:
            return None
        ours, theirs = medians[label], medians[best]
        return ours / theirs if test.more_is_better else theirs / ours

    order = sorted(medians, key=lambda label: (label != best, label not in references))
    return [
        {
            "engine": label,
            "median": medians[label],
            "min": min(samples[label]),
            "max": max(samples[label]),
            "samples": samples[label],
            "ratio": ratio(label),
            "best_of_reference": label == best,
        }
        for label in order
    ]


def table(results, reference, everything=False):
    """A Markdown table; of the reference only its best configuration, unless `everything` is wanted."""
    lines = [
        f"| test | engine | median | min..max | ratio to {reference} |",
        "|---|---|---:|---:|---:|",
    ]
    for test, rows_ in results:
        for row in rows_:
            if row["engine"].startswith(reference) and not (row["best_of_reference"] or everything):
                continue
            spread = f"{number(row['min'])}..{number(row['max'])}"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            lines.append(f"| {test} | {row['engine']} | {number(row['median'])} {test.unit} | {spread} | {ratio} |")
    return "\n".join(lines)


def number(x):
    """Three digits or more."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.3f}"
