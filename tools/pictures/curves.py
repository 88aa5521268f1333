"""Speed and memory of a whole model as curves over context, from what the benchmarks print with --json.

    pip install -r requirements.txt
    python curves.py --prompts prefill.json --decode decode.json --attention attention.json --out ../../docs/images/bitnet.png

`--prompts` and `--decode` are of `bench-model --phases prefill` and `--phases decode`, `--attention` is of `ratios`.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, told apart by colour-blind readers; markers for those who print in grey.
STYLES = {
    "dense-f16": ("dense, f16 cache", "#000000", "o"),
    "hybrid-f16": ("hybrid, f16", "#E69F00", "s"),
    "hybrid-int8": ("hybrid, 8-bit", "#0072B2", "^"),
    "hybrid-compact": ("hybrid, compact", "#009E73", "D"),
    "hybrid-f32": ("hybrid, f32 products", "#D55E00", "v"),
    "hybrid-int16": ("hybrid, int16 products", "#56B4E9", "P"),
    "hybrid-8bit": ("hybrid, 8-bit", "#0072B2", "^"),
    "compact": ("hybrid, compact", "#009E73", "D"),
}

# What is drawn of attention alone; products of int16 are for prompts.
PREFILL = ["hybrid-f32", "hybrid-int16", "compact"]
DECODE = ["hybrid-f32", "hybrid-8bit", "compact"]


def rows(path: Path) -> tuple[list[dict], str]:
    """The rows of a report, and where they were measured."""
    report = json.loads(path.read_text().strip().splitlines()[-1])
    return report["rows"], f"{report['cpu']}, {report['threads']} threads, {report['date']}"


def draw(axes, rows: list[dict], name: str, tokens: str, value: str, scale: float = 1.0, prefix: str = "", line: str = "-") -> None:
    """A curve for each engine (or whatever `name` is), with the range of its rounds if `value` is a rate."""
    for engine in dict.fromkeys(row[name] for row in rows):
        label, colour, marker = STYLES[engine]
        of = sorted((row for row in rows if row[name] == engine), key=lambda row: row[tokens])
        x, y = [row[tokens] for row in of], [row[value] * scale for row in of]
        axes.plot(x, y, color=colour, marker=marker, label=prefix + label, linestyle=line)
        if value == "tokens_per_second":
            low = [rate * (1 - row["median_ms"] / row["max_ms"]) for rate, row in zip(y, of)]
            high = [rate * (row["median_ms"] / row["min_ms"] - 1) for rate, row in zip(y, of)]
            axes.errorbar(x, y, [low, high], color=colour, fmt="none", alpha=0.5, capsize=3)


def finish(axes, rows: list[dict], tokens: str, title: str, x: str, y: str, columns: int = 1) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", ylim=(0, None))
    ticks = sorted({row[tokens] for row in rows})
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["prompts", "decode", "attention", "out"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    figure, ((prompts, decode), (memory, attention)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")

    whole, machine = rows(args.prompts)
    draw(prompts, whole, "engine", "tokens", "tokens_per_second")
    finish(prompts, whole, "tokens", "Prompt, whole model", "tokens of the prompt", "tokens/s")
    whole, _ = rows(args.decode)
    draw(decode, whole, "engine", "tokens", "tokens_per_second")
    finish(decode, whole, "tokens", "Decoding, whole model", "tokens in the cache", "tokens/s")
    draw(memory, whole, "engine", "tokens", "cache_bytes", 1e-6)
    finish(memory, whole, "tokens", "Caches of all layers", "tokens in the cache", "MB")
    alone, _ = rows(args.attention)
    for phase, line, variants in [("prefill", "-", PREFILL), ("decode", "--", DECODE)]:
        chosen = [row for row in alone if row["phase"] == phase and row["variant"] in variants]
        draw(attention, chosen, "variant", "n", "ratio_to_dense", prefix=f"{phase}: ", line=line)
    attention.axhline(1, color="#000000", linewidth=0.8)
    finish(attention, alone, "n", "Attention alone, times as fast as dense", "tokens", "time of dense / time", columns=2)
    attention.set_ylim(0, 1.35 * max(row["ratio_to_dense"] for row in alone))
    figure.suptitle(machine, fontsize="medium")
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
