"""What `transformers` makes of the evaluation tasks with SmolLM2-135M-Instruct, the GGUF file's weights unpacked to f32.

    python tasks.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data DIR --out ../../crates/deltallm-cli/tests/fixtures/tasks.json

DIR holds the task files (`arc_easy.jsonl`, ...). The first 50 examples of each are scored, one at a time, by the rules of
lm-evaluation-harness: trailing white space of the context moves to the continuation, context and continuation are encoded as one text,
and the continuation's tokens are those after the first len(encode(context)).
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from vocabularies import smollm_tokenizer

EXAMPLES, NEW_TOKENS, DELIMITER = 50, 64, " "
END_OF_TEXT = ["<|im_end|>", "<|endoftext|>"]
JSON_LINES = ["arc_easy", "arc_challenge", "piqa", "openbook_qa", "commonsense_qa", "boolq", "winogrande", "lambada_openai", "gsm8k"]


def pair(encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    head, whole = encode(stripped), encode(stripped + continuation)
    return whole, whole[len(head) :]


@torch.no_grad()
def score(model, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    """Per pair (log-likelihood of the continuation, whether greedy decoding would have written it)."""
    inputs = sorted({tuple(whole[:-1]) for whole, _ in pairs})
    longest = max(map(len, inputs))
    # Causal: what stands to the right of a text does not change it.
    logits = model(torch.tensor([list(ids) + [0] * (longest - len(ids)) for ids in inputs])).logits
    scores = []
    for whole, continuation in pairs:
        end, targets = len(whole) - 1, torch.tensor(continuation)
        rows = logits[inputs.index(tuple(whole[:-1])), end - len(continuation) : end].double()
        log_likelihood = rows.log_softmax(-1).gather(-1, targets[:, None]).sum().item()
        scores.append((log_likelihood, bool((rows.argmax(-1) == targets).all())))
    return scores


@torch.no_grad()
def answer(model, tokenizer, ids: list[int], gold: list[int]) -> tuple[str, float, float]:
    """(greedy text up to a line break, smallest lead of a greedy choice over the next best, log-likelihood of the tokens `gold`)."""
    ends = [tokenizer.token_to_id(token) for token in END_OF_TEXT]
    output = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
    logits, cache = output.logits[0], output.past_key_values
    if len(gold) > 1:
        rest = model(torch.tensor([gold[:-1]]), past_key_values=cache, use_cache=True)
        logits = torch.cat([logits, rest.logits[0]])
        cache.crop(1 - len(gold))
    gold_score = logits.double().log_softmax(-1).gather(-1, torch.tensor(gold)[:, None]).sum().item()
    new, lead = [], float("inf")
    while True:
        best = output.logits[0, -1].topk(2)
        lead = min(lead, (best.values[0] - best.values[1]).item())
        new.append(best.indices[0].item())
        text = tokenizer.decode(new, skip_special_tokens=True)
        if new[-1] in ends or "\n" in text or len(new) == NEW_TOKENS:
            return text.split("\n")[0], lead, gold_score
        output = model(best.indices[None, :1], past_key_values=cache, use_cache=True)


def requests(name: str, record: dict) -> list[tuple[str, str]]:
    if name == "winogrande":
        return [(option, DELIMITER + record["continuation"]) for option in record["context_options"]]
    if name == "lambada_openai":
        return [(record["context"], DELIMITER + record["continuation"])]
    if name == "gsm8k":
        context = f"Question: {record['context']}\nAnswer: {record['chain_of_thought']}\n####"
        return [(context, DELIMITER + record["answer"])]
    return [(record["query"], DELIMITER + choice) for choice in record["choices"]]


def questions(path: Path):
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                prompt = f"Title: {article['title']}\n\nBackground: {paragraph['context']}\n\nQuestion: {question['question']}\n\nAnswer:"
                golds = [gold["text"] for gold in question["answers"]]
                yield prompt, golds[0] if golds else "unanswerable"


def write(path: Path, tasks: dict):
    """One task a line, one question a line."""
    rows = [f"{json.dumps(name)}: {json.dumps(tasks[name], separators=(',', ':'))}" for name in JSON_LINES if name in tasks]
    lines = ",\n".join(json.dumps(question) for question in tasks.get("squad", []))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{\n"tasks": {\n' + ",\n".join(rows) + '\n},\n"squad": [\n' + lines + "\n]\n}\n")


def read(path: Path) -> dict:
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    return before["tasks"] | ({"squad": before["squad"]} if before["squad"] else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="tasks that are in this file already are kept as they are")
    parser.add_argument("--only", nargs="*", default=[*JSON_LINES, "squad"], metavar="TASK")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = smollm_tokenizer(args.model)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    model = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
    short = lambda x: float(f"{x:.8g}")

    tasks = read(args.out)
    for name in [name for name in args.only if name not in tasks]:
        examples = []
        if name == "squad":
            for _, (prompt, gold) in zip(range(EXAMPLES), questions(args.data / "squad_v2_dev.json")):
                _, gold_tokens = pair(encode, prompt, DELIMITER + gold)
                text, lead, gold_score = answer(model, tokenizer, encode(prompt), gold_tokens)
                examples.append({"text": text, "smallest_lead": float(f"{lead:.3g}"), "gold": gold, "gold_log_likelihood": short(gold_score)})
        else:
            with (args.data / f"{name}.jsonl").open(encoding="utf-8") as lines:
                for _, line in zip(range(EXAMPLES), lines):
                    pairs = [pair(encode, *request) for request in requests(name, json.loads(line))]
                    examples.append([[short(log_likelihood), int(greedy)] for log_likelihood, greedy in score(model, pairs)])
        tasks[name] = examples
        print(name, len(examples), flush=True)
        write(args.out, tasks)


if __name__ == "__main__":
    main()
