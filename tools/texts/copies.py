#!/usr/bin/env python3
"""Makes a text with long copies out of another one: what is attended from far away, and what selection loses first.

    python3 tools/texts/copies.py TEXT OUT

After every 1600 characters of TEXT comes a passage of 800 characters, about 200 tokens, that stood 4000 to 120000 characters
before, about 1000 to 30000 tokens; distances are as often in any octave as in another. A third of OUT is copies. The same
TEXT gives the same OUT.
"""

import argparse
import math
import pathlib
import random

NEW, PASSAGE = 1600, 800
NEAREST, FARTHEST = 4_000, 120_000


def copies(text):
    """TEXT with copies."""
    random.seed(1)
    out = ""
    for start in range(0, len(text), NEW):
        out += text[start : start + NEW]
        farthest = min(FARTHEST, len(out) - PASSAGE)
        if farthest > NEAREST:
            back = round(math.exp(random.uniform(math.log(NEAREST), math.log(farthest))))
            end = len(out) - back
            out += out[end - min(PASSAGE, end) : end]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=pathlib.Path, help="UTF-8")
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    args.out.write_text(copies(args.text.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
