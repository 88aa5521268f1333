#!/usr/bin/env python3
"""Sets llama.cpp and ik_llama.cpp beside our models and candle's.

`build FOLDER` builds the two; `run FOLDER` measures. README.md in this folder says how.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

# Nothing is to be left beside the sources.
sys.dont_write_bytecode = True

from children import ChildError  # noqa: E402
from engines import BenchModel, Candle, IkLlamaCpp, LlamaCpp, Plan, Test  # noqa: E402
from llama_build import BuildError, build, build_ik  # noqa: E402
from results import rows, table  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RIVALS = [LlamaCpp.name, IkLlamaCpp.name]


class UsageError(Exception):
    """One line for the user."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message}; try --help")


def numbers(text):
    values = [int(part) for part in text.split(",") if part]
    if any(value < 1 for value in values):
        raise ValueError
    return values


def at_least(least):
    def parse(text):
        if int(text) < least:
            raise ValueError
        return int(text)

    parse.__name__ = f"number >= {least}"
    return parse


numbers.__name__ = "list of numbers >= 1"


def arguments():
    parser = Parser(prog="llama_cpp.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|run", parser_class=Parser)

    make = commands.add_parser("build", help="build both for this CPU", description="Builds llama-bench and ik-bench for this CPU.")
    make.add_argument("folder", metavar="FOLDER", help="where everything goes: source packages, sources, builds, programs")
    make.add_argument("--without-ik", action="store_true", help="llama.cpp only")
    make.add_argument("--version", help="of llama-cpp-python [default: the latest, or what FOLDER/sdist holds]")
    make.add_argument("--jobs", type=at_least(1), default=2, metavar="N", help="compilers at once [default: 2]")

    measure = commands.add_parser(
        "run",
        help="measure, in interleaved rounds",
        description="Measures the rivals, bench-model and candle in rounds, and prints medians and ratios to each rival's best.",
    )
    add = measure.add_argument
    add("folder", metavar="FOLDER", help="the one of `build`")
    add("--bench-model", default=ROOT / "target/release/bench-model", metavar="FILE", help="our program [default: in target/release]")
    add("--candle", metavar="FILE", help="bench-model for candle, if it was compiled another way [default: the one of --bench-model]")
    add("--model", default=ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf", metavar="FILE", help="GGUF file [default: SmolLM2-135M]")
    add("--text", metavar="FILE", help="what our models read [default: tales by the brothers Grimm]")
    add("--profile", metavar="FILE", help="settings of our hybrid attention [default: built-in ones, where there are any for the model]")
    add("--prompts", type=numbers, default=[512, 2048], metavar="N,...", help="tokens of prompts [default: 512,2048]; '' for none")
    add("--depths", type=numbers, default=[128, 2048], metavar="N,...", help="tokens in the cache before decoding [default: 128,2048]; '' for none")
    add("--first-token", type=at_least(0), default=32, metavar="N", help="prompt for the time from start to first token; 0 for none [default: 32]")
    add("--memory", type=at_least(0), default=2048, metavar="N", help="prompt for peak memory; 0 for none [default: 2048]")
    add("--decode-tokens", type=at_least(1), default=32, metavar="N", help="tokens decoded in a row [default: 32]")
    add("--threads", type=at_least(1), default=1, metavar="N", help="threads of everyone [default: 1]")
    add("--rounds", type=at_least(1), default=3, metavar="R", help="rounds of everyone [default: 3]")
    add("--repetitions", type=at_least(1), default=1, metavar="R", help="measurements of a process, after one that does not count [default: 1]")
    add("--keep", type=at_least(1), default=8, metavar="K", help="configurations of a rival that go on after the first round, the best of each test [default: 8, all]")
    add("--kernels", default="dense-f16,dense-int8,hybrid-f16,hybrid-compact", metavar="NAME,...", help="ours, as bench-model names them; '' for none")
    add("--candle-rounds", type=at_least(0), default=1, metavar="R", help="rounds that candle takes part in [default: 1]")
    add("--candle-longest", type=at_least(1), default=512, metavar="N", help="longest prompt that candle is timed with [default: 512]")
    add("--all", action="store_true", help="show all configurations of the rivals, not only their best")
    add("--json", action="store_true", help="print everything as one JSON object, the last line of stdout")
    return parser.parse_args()


def existing(option, path, advice):
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{option} {path}: expected a file, found none; {advice}")
    return path.resolve()


def tests(args):
    kinds = [("prefill", args.prompts), ("decode", args.depths)]
    kinds += [("first token", [args.first_token] if args.first_token else [])]
    kinds += [("memory", [args.memory] if args.memory else [])]
    return [Test(kind, tokens) for kind, lengths in kinds for tokens in lengths]


def measure(args):
    script = Path(__file__).name
    built = Path(args.folder)
    advice = f"run {script} build {args.folder}"
    binary = existing("FOLDER", built / "llama-bench", advice)
    llama = json.loads(existing("FOLDER", built / "build.json", advice).read_text())
    ik = built.resolve() / "ik-bench"
    ik_built = json.loads(existing("FOLDER", built / "ik-build.json", advice).read_text()) if ik.is_file() else None
    bench_model = existing(
        "--bench-model", args.bench_model, "run cargo build --release -p deltallm-benches --bin bench-model"
    )
    candle = existing("--candle", args.candle, "leave it out") if args.candle else bench_model
    plan = Plan(
        model=existing("--model", args.model, "run tools/fetch-smollm2"),
        text=existing("--text", args.text, "name a text file") if args.text else None,
        profile=existing("--profile", args.profile, "leave it out") if args.profile else None,
        threads=args.threads,
        decode_tokens=args.decode_tokens,
        repetitions=args.repetitions,
    )
    ours = BenchModel("deltallm", bench_model, [name for name in args.kernels.split(",") if name], plan)
    engines = [LlamaCpp(binary, plan, args.keep)]
    engines += [IkLlamaCpp(ik, plan, args.keep)] if ik.is_file() else []
    engines += [ours] if ours.kernels else []
    engines += [Candle(candle, plan, args.candle_rounds, args.candle_longest)] if args.candle_rounds else []
    samples = {test: {} for test in tests(args)}
    if not samples:
        raise UsageError("expected something to measure, got no lengths; try --help")
    for round_ in range(args.rounds):
        for test, of_test in samples.items():
            for i in range(len(engines)):
                engine = engines[(i + round_) % len(engines)]
                if not engine.takes(test, round_):
                    continue
                print(f"round {round_ + 1} of {args.rounds}: {test}: {engine.name}", file=sys.stderr, flush=True)
                for label, values in engine.measure(test, round_).items():
                    of_test.setdefault(label, []).extend(values)
    results = [(test, rows(test, of_test, RIVALS)) for test, of_test in samples.items()]
    report(args, plan, llama, ik_built, ours, results)


def report(args, plan, llama, ik_built, ours, results):
    about = {
        **ours.about,
        "model_file": plan.model.name,
        "threads": plan.threads,
        "rounds": args.rounds,
        "repetitions": plan.repetitions,
        "decode_tokens": plan.decode_tokens,
        "deltallm": deltallm_version(),
        "candle_transformers": locked_version("candle-transformers"),
        "llama_cpp": llama,
        "ik_llama_cpp": ik_built,
    }
    print(f"{about.get('cpu', 'machine unknown')}; {about.get('date', '')}; {plan.threads} threads; {plan.model.name}")
    print(f"llama.cpp {llama['commit']} ({llama['package']}, {llama['compiler']}, native); ", end="")
    print(f"ik_llama.cpp {ik_built['package']}; " if ik_built else "", end="")
    print(f"deltallm {about['deltallm']}; candle-transformers {about['candle_transformers']}")
    print("A ratio above 1 is better than that rival's best: faster, or smaller.\n")
    print(table(results, [rival for rival in RIVALS if rival == LlamaCpp.name or ik_built], args.all))
    if args.json:
        of = [{"test": test.kind, "tokens": test.tokens, "unit": test.unit, "rows": rows_} for test, rows_ in results]
        print(json.dumps({**about, "tests": of}))


def deltallm_version():
    """The commit, `-dirty` if something has changed since."""
    try:
        command = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def locked_version(crate):
    found = re.search(rf'name = "{crate}"\nversion = "([^"]+)"', (ROOT / "Cargo.lock").read_text())
    return found[1] if found else "unknown"


def main():
    try:
        args = arguments()
        if args.command == "build":
            print(build(args.folder, args.version, args.jobs))
            if not args.without_ik:
                print(build_ik(args.folder, args.jobs))
        else:
            measure(args)
    except (BuildError, ChildError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
