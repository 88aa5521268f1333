"""The tables of docs/results/paper.md: runs `evaluate` on every task and prints what came of it as Markdown.

    python3 tools/paper/table.py --model FILE --data FOLDER --out FOLDER --limit N

FOLDER of --data holds the task files (arc_easy.jsonl, ..., squad_v2_dev.json). Every run keeps a log in the --out folder:
stopped and started again, the same command goes on where it was, and with a larger --limit it adds examples. Other options (--theta,
--linear, --profile) want another --out folder. Needs Python 3 and nothing else.
"""

import argparse
import json
import pathlib
import subprocess

TASKS = {
    "arc_easy": ("choices", "arc_easy.jsonl"),
    "arc_challenge": ("choices", "arc_challenge.jsonl"),
    "piqa": ("choices", "piqa.jsonl"),
    "openbook_qa": ("choices", "openbook_qa.jsonl"),
    "commonsense_qa": ("choices", "commonsense_qa.jsonl"),
    "boolq": ("choices", "boolq.jsonl"),
    "winogrande": ("schema", "winogrande.jsonl"),
    "lambada_openai": ("last-word", "lambada_openai.jsonl"),
    "gsm8k": ("last-word", "gsm8k.jsonl"),
    "squad_v2": ("squad", "squad_v2_dev.json"),
}
# Solved examples in the prompt, as in the paper; none elsewhere.
SHOTS = {"commonsense_qa": 10, "gsm8k": 5}
SETTINGS = ["paper rule", "default"]
# What the examples above measure, by task.
METRICS = {"choices": ["accuracy", "accuracy_norm"], "schema": ["accuracy"], "last-word": ["accuracy"], "squad": ["f1", "exact_match"]}


def settings(args):
    """Name of each setting that is wanted, and its options."""
    options = {
        "paper rule": ["--paper", "--theta", str(args.theta)],
        "default": ["--exact-prompt", "0"] + ([] if args.profile is None else ["--profile", args.profile]),
    }
    return [(name, options[name]) for name in args.settings]


def run(args, task, name, options):
    kind, file = TASKS[task]
    slug = f"{task}-{name}".replace(" ", "-")
    command = [args.program, "evaluate", "--model", args.model, "--task", kind, "--data", str(args.data / file), "--limit", str(args.limit), "--linear", args.linear]
    if task in SHOTS:
        command += ["--shots", str(SHOTS[task])]
    command += ["--compare", "dense", "--json", "--resume", str(args.out / f"{slug}.log"), *options]
    print("+", " ".join(command), flush=True)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    (args.out / f"{slug}.json").write_text(output.splitlines()[-1] + "\n")


def percent(value, error):
    return f"{100 * value:.1f} ± {100 * error:.1f}"


def rows(args):
    for task, (kind, _) in TASKS.items():
        for path in sorted(args.out.glob(f"{task}-*.json"), key=lambda path: ("default" in path.name, "prefill-only" in path.name)):
            name = path.stem.removeprefix(f"{task}-").replace("-", " ")
            result = json.loads(path.read_text())
            metrics = METRICS[kind]
            metric = metrics[0]
            dense = result["dense"]
            length = f"{result['mean_tokens']:.0f} ({result['longest_tokens']})"
            row = [task, str(result["shots"]), str(result["examples"]), length, name, metric]
            row += [percent(dense[metric], dense["standard_error"]), percent(result[metric], result["standard_error"])]
            row += [f"{100 * result[metric + '_difference']:+.1f} ± {100 * result[metric + '_difference_standard_error']:.1f}"]
            if len(metrics) > 1:
                row += [f"{metrics[1]}: {100 * dense[metrics[1]]:.1f} → {100 * result[metrics[1]]:.1f}"]
            else:
                row += [""]
            row += [f"{result['flips']}", f"{result['kl']:.4f}", f"{100 * result['top1_agreement']:.1f}"]
            row += [f"{result['zero_fraction']:.3f}", f"{100 * result['sparsity']:.0f} %", f"{100 * result['values_skipped']:.0f} %"]
            yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--limit", type=int, default=200, help="examples of each task")
    parser.add_argument("--theta", type=float, default=1.0, help="threshold of the paper's rule")
    parser.add_argument("--profile", help="settings of the default [default: the model's built-in ones]")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS, metavar="NAME", help="of %(choices)s [default: both]")
    parser.add_argument("--linear", choices=["packed", "f32"], default="packed", help="how weights are multiplied [default: packed, as the program does]")
    parser.add_argument("--only", nargs="*", choices=TASKS, help="these tasks only")
    parser.add_argument("--program", default="target/release/deltallm", help="the program deltallm")
    parser.add_argument("--print-only", action="store_true", help="no runs: the table of what is there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.print_only:
        for task, (kind, _) in TASKS.items():
            if args.only and task not in args.only:
                continue
            for name, options in settings(args):
                run(args, task, name, options)
                # Only where something is generated do the phases differ.
                if kind == "squad":
                    run(args, task, f"{name} prefill only", [*options, "--phases", "prefill"])
    header = ["task", "shots", "n", "tokens, mean (longest)", "attention", "metric", "dense, %", "this, %", "difference, points"]
    header += ["also", "flips", "KL, nats", "same top token, %", "zero fraction", "sparsity (paper)", "values skipped"]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows(args):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
