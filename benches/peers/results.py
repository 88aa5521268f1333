"""Medians, ratios and the table of them."""

from statistics import median


def rows(test, samples, rivals):
    """One row for every configuration of `samples`, the best of each of the `rivals` first. The label of a configuration begins with the
    name of its engine, up to a comma.

    A ratio above 1 is better than that rival's best: faster, or smaller.
    """
    medians = {label: median(values) for label, values in samples.items()}
    better = max if test.more_is_better else min
    of_rival = {rival: [label for label in medians if engine(label) == rival] for rival in rivals}
    best = {rival: better(labels, key=medians.get) for rival, labels in of_rival.items() if labels}

    def ratio(label, other):
        ours, theirs = medians[label], medians[other]
        return ours / theirs if test.more_is_better else theirs / ours

    order = sorted(medians, key=lambda label: (label not in best.values(), engine(label) not in rivals))
    return [
        {
            "engine": label,
            "median": medians[label],
            "min": min(samples[label]),
            "max": max(samples[label]),
            "samples": samples[label],
            "ratios": {rival: ratio(label, other) for rival, other in best.items()},
            "best_of_rival": label in best.values(),
        }
        for label in order
    ]


def engine(label):
    return label.partition(",")[0]


def table(results, rivals, everything=False):
    """A Markdown table; of a rival only its best configuration, unless `everything` is wanted."""
    lines = [
        "| test | engine | median | min..max |" + "".join(f" over {rival} |" for rival in rivals),
        "|---|---|---:|---:|" + "---:|" * len(rivals),
    ]
    for test, rows_ in results:
        for row in rows_:
            if engine(row["engine"]) in rivals and not (row["best_of_rival"] or everything):
                continue
            spread = f"{number(row['min'])}..{number(row['max'])}"
            ratios = [f"{row['ratios'][rival]:.2f}" if rival in row["ratios"] else "" for rival in rivals]
            cells = [test, row["engine"], f"{number(row['median'])} {test.unit}", spread, *ratios]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def number(x):
    """Three digits or more."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.3f}"
