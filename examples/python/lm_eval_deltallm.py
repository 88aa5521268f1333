"""lm-evaluation-harness on a model, dense and on delta attention, side by side.

    pip install lm-eval
    python lm_eval_deltallm.py --model MODEL --tasks piqa,arc_easy,winogrande [--limit 200] [--spec profile.json]
    python lm_eval_deltallm.py --model MODEL --tasks paper      # the thirteen tasks of the paper, with as many examples before each question

Tasks of your own: --include DIR with their YAML, or --files DIR with NAME.jsonl of lines {"query", "choices", "gold"},
{"context_options", "continuation", "gold"}, {"context", "continuation"} or {"context", "answer"}, or NAME.json in the format of SQuAD 2.0.
"""

import argparse
import collections
import json
import re
import string
from pathlib import Path

import datasets
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import deltallm

# The tasks of the paper, and how many solved examples come before each question.
PAPER = {
    **dict.fromkeys(["arc_easy", "arc_challenge", "openbookqa", "boolq", "hellaswag", "piqa", "winogrande"], 0),
    **dict.fromkeys(["triviaqa", "mmlu"], 5),
    **dict.fromkeys(["commonsense_qa", "truthfulqa_mc2"], 10),
    **dict.fromkeys(["squadv2", "gsm8k"], None),
}


def from_file(path):
    """A task in a file, as its first line shows."""
    line = json.loads(path.open(encoding="utf-8").readline())
    accuracy = [{"metric": "acc"}]
    if "context_options" in line:
        # Which beginning makes the end likely (WinoGrande); the harness takes a number as text for the choice of the beginning.
        what = {"output_type": "multiple_choice", "doc_to_text": "{{gold}}", "doc_to_choice": "{{context_options}}", "doc_to_target": "{{continuation}}"}
    elif "choices" in line:
        what = {"output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
        accuracy += [{"metric": "acc_norm"}]
    elif "continuation" in line:
        # The last word (LAMBADA).
        what = {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + continuation}}"}
        accuracy += [{"metric": "perplexity"}]
    elif "answer" in line:
        # A number at the end of what is written (GSM8K).
        what = {
            "output_type": "generate_until",
            "doc_to_text": "Question: {{context}}\nAnswer:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["Question:", "\n\n"], "max_gen_toks": 200},
            "filter_list": [{"name": "last-number", "filter": [{"function": "regex", "regex_pattern": r"(?s)(-?\d[\d,]*(?:\.\d+)?)(?!.*\d)"}, {"function": "take_first"}]}],
        }
        accuracy = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": [","]}]
    else:
        raise ValueError(f"{path}: expected lines with choices, a continuation or an answer, got {sorted(line)}")
    split = {"test_split": "test", "fewshot_split": "test"}
    return {"task": path.stem, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, **split, **what, "metric_list": accuracy}


def words(text):
    """As SQuAD counts them: without case, punctuation and articles."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(answer, gold):
    answer, gold = words(answer), words(gold)
    common = sum((collections.Counter(answer) & collections.Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if answer and gold else float(answer == gold)


def from_squad(path):
    """Questions about passages. One that has no answer is answered rightly by nothing at all, or by "unanswerable"."""

    def questions(**_):
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        found = ((p["context"], q) for a in articles for p in a["paragraphs"] for q in p["qas"])
        rows = [{"context": context, "question": q["question"], "answers": [x["text"] for x in q["answers"]] or ["unanswerable"]} for context, q in found]
        return {"test": datasets.Dataset.from_list(rows)}

    def score(question, results):
        answer = results[0].strip() or "unanswerable"
        exact = any(words(answer) == words(gold) for gold in question["answers"])
        return {"exact": float(exact), "f1": max(f1(answer, gold) for gold in question["answers"])}

    return {
        "task": path.stem,
        "custom_dataset": questions,
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Background: {{context}}\n\nQuestion: {{question}}\n\nAnswer:",
        "doc_to_target": "{{answers[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 30},
        "process_results": score,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("exact", "f1")],
    }


def find(name, folder):
    """The task of that name: from a file, if the folder has one."""
    if folder and (folder / f"{name}.jsonl").exists():
        return from_file(folder / f"{name}.jsonl")
    if folder and (folder / f"{name}.json").exists():
        return from_squad(folder / f"{name}.json")
    return name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub or folder")
    parser.add_argument("--gguf", help="name of a GGUF file in that folder")
    parser.add_argument("--tasks", required=True, help="names, separated by commas, or paper")
    parser.add_argument("--include", help="folder with tasks of your own")
    parser.add_argument("--files", type=Path, help="folder with NAME.jsonl or NAME.json of your own")
    parser.add_argument("--fewshot", type=int, help="examples before each question: longer prompts have more to skip [default: the task's]")
    parser.add_argument("--limit", type=int, help="examples of each task")
    parser.add_argument("--spec", help="a profile [default: settings that are safe for any model]")
    parser.add_argument("--store", default="f16", help="how keys and values are cached")
    args = parser.parse_args()

    more = {"gguf_file": args.gguf} if args.gguf else {}
    lm = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=1, **more)
    spec = deltallm.Spec.from_profile(args.spec, args.store) if args.spec else deltallm.Spec(store=args.store)
    manager = TaskManager(include_path=args.include)
    shots = PAPER if args.tasks == "paper" else dict.fromkeys(args.tasks.split(","))
    if args.fewshot is not None:
        shots = dict.fromkeys(shots, args.fewshot)
    results = {"dense": {}, "deltallm": {}}
    for attention, found in results.items():
        if attention == "deltallm":
            deltallm.patch(lm.model, spec)
        for count in dict.fromkeys(shots.values()):
            tasks = [find(name, args.files) for name in shots if shots[name] == count]
            found |= lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, num_fewshot=count, limit=args.limit)["results"]
    print(f"{'task':24} {'metric':20} {'dense':>9} {'deltallm':>9} {'change':>9} {'dense ±':>9}")
    for task, dense in results["dense"].items():
        for metric, value in dense.items():
            if isinstance(value, float) and "stderr" not in metric:
                other, error = results["deltallm"][task][metric], dense.get(metric.replace(",", "_stderr,"))
                error = f"{error:9.4f}" if isinstance(error, float) else f"{'':9}"
                print(f"{task:24} {metric:20} {value:9.4f} {other:9.4f} {other - value:+9.4f} {error}")


if __name__ == "__main__":
    main()
