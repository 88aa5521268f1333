#!/usr/bin/env python3
"""What llama.cpp's quantised caches cost in accuracy: perplexity, divergence and top token beside a cache of f16, on one window of a text.

    cache_accuracy.py FOLDER --model FILE --text FILE [--context 4096] [--caches q8_0,q4_0] [--threads 1]

FOLDER is the one of `llama_cpp.py build`. The second half of the window is scored, as llama-perplexity does it; the program `lengths` does the
same of ours with `--score-from`.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

from children import ChildError, run  # noqa: E402

# Bytes of a block of 32 numbers.
BYTES = {"f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18}
# What llama-perplexity says, and what it is called here.
LINES = {"Mean PPL(Q)/PPL(base)": "perplexity_ratio", "Mean    KLD": "kl", "Same top p": "same_top_percent"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="GGUF file")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="at least two windows long")
    parser.add_argument("--context", type=int, default=4096, metavar="N", help="tokens of the window [default: 4096]")
    parser.add_argument("--caches", default="q8_0,q4_0", metavar="NAME,...", help=f"of {', '.join(BYTES)} [default: q8_0,q4_0]")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="[default: 1]")
    args = parser.parse_args()
    args.caches = args.caches.split(",")
    for cache in args.caches:
        if cache not in BYTES:
            parser.error(f"--caches: expected names among {', '.join(BYTES)}, got {cache}")
    for name in ("model", "text"):
        if not getattr(args, name).is_file():
            parser.error(f"--{name} {getattr(args, name)}: expected a file, found none")
    args.program = args.folder.resolve() / "llama-perplexity"
    if not args.program.is_file():
        parser.error(f"{args.program}: expected a program, found none; run llama_cpp.py build {args.folder}")
    return args


def measured(text):
    """The numbers of a report."""
    found = {}
    for line, name in LINES.items():
        number = re.search(rf"^{re.escape(line)}\s*:\s*(-?[\d.]+)", text, re.MULTILINE)
        if number is None:
            raise ChildError(f"llama-perplexity: expected a line {line!r} in its report, found none")
        found[name] = float(number[1])
    return found


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch) / "logits"
        shared = [args.program, "-m", args.model, "-f", args.text, "-c", args.context, "-b", 512, "--chunks", 1]
        shared += ["-t", args.threads, "-fa", "on", "--kl-divergence-base", logits]
        print("f16", file=sys.stderr, flush=True)
        run(shared)
        for cache in args.caches:
            print(cache, file=sys.stderr, flush=True)
            report = run([*shared, "-ctk", cache, "-ctv", cache, "--kl-divergence"]).stdout
            row = {"model": args.model.name, "text": args.text.name, "tokens": args.context, "cache": cache}
            print(json.dumps({**row, "bytes_of_f16": BYTES[cache] / BYTES["f16"], **measured(report)}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except ChildError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
