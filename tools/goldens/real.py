"""What `transformers` computes with published models of other families, the GGUF file's weights unpacked to f32, and how their own tokenizers
cut texts.

    python real.py --model qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --text wikitext2_test.txt --out ../../crates/deltallm-models/tests/fixtures/real/qwen2.5-coder-0.5b.json
"""

import argparse
import json
from pathlib import Path

import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from smollm2 import GREEDY, LONG, answer
from vocabularies import TEXTS

STRIDE, WINDOWS, CONTEXT = 509, 2, 512
PROMPTS = ["The capital of France is", 'fn fibonacci(n: u64) -> u64 {\n    match n {\n        0 => 0,\n        1 => 1,\n        _ =>', "Der höchste Berg der Erde ist der"]


@torch.no_grad()
def perplexity(model, window: list[int]) -> float:
    ids = torch.tensor([window])
    logits = model(ids, use_cache=False).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="any long text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name).backend_tokenizer
    if "qwen" in args.model.name:
        # As in the model's own tokenizer.json: a GGUF file does not say it, and transformers leaves it out then.
        tokenizer.normalizer = normalizers.NFC()
    encode = lambda text, special=False: tokenizer.encode(text, add_special_tokens=special).ids
    special = [tokenizer.id_to_token(id) for id in encode("", True)]
    markers = [token for token in ("<|im_start|>", "<start_of_turn>", "<|endoftext|>", "<end_of_turn>") if tokenizer.token_to_id(token) is not None]
    texts = [{"text": text, "ids": encode(text)} for text in TEXTS + [f"{a}user\nHi{b}\n {b}{a}" for a in markers for b in markers[-1:]]]

    model = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
    text = args.text.read_text(encoding="utf-8")[: 20 * CONTEXT]
    cases = []
    for prompt in [*PROMPTS, tokenizer.decode(encode(text)[:LONG], skip_special_tokens=False)]:
        ids = encode(prompt, True)
        logits, greedy, lead = answer(model, ids)
        print(len(ids), lead, repr(tokenizer.decode(greedy, skip_special_tokens=False)), flush=True)
        short = [float(f"{x:.7g}") for x in logits[::STRIDE].tolist()]
        cases.append({"prompt": prompt, "tokens": ids, "greedy": greedy, "smallest_lead": float(f"{lead:.3g}"), "argmax": logits.argmax().item(), "max": float(f"{logits.max():.7g}"), "logits": short})
    length = CONTEXT - len(special)
    ids = encode(text)
    windows = [encode("", True) + ids[i * length : (i + 1) * length] for i in range(WINDOWS)]
    windows = [{"tokens": window, "mean_nll": perplexity(model, window)} for window in windows]
    print([window["mean_nll"] for window in windows])
    lines = lambda rows: ",\n".join(json.dumps(row) for row in rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(f'{{\n"stride": {STRIDE},\n"cases": [\n{lines(cases)}\n],\n"windows": [\n{lines(windows)}\n],\n"texts": [\n{lines(texts)}\n]\n}}\n')
    print(GREEDY, args.out.stat().st_size)


if __name__ == "__main__":
    main()
