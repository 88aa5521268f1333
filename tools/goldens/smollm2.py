"""What `transformers` computes with SmolLM2-135M-Instruct, the GGUF file's weights unpacked to f32.

    python smollm2.py --model SmolLM2-135M-Instruct.Q4_1.gguf --text wikitext2_test.txt --out DIR [--fixture smollm2.json]

DIR receives `smollm2.json` (prompts, token ids, greedy continuations) and `smollm2.safetensors` (all logits of the last position,
`logits.0` ..); the fixture holds the logits of every 96th token, which is small enough to commit.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vocabularies import smollm_tokenizer

GREEDY, STRIDE, LONG = 24, 96, 300


@torch.no_grad()
def answer(model, ids: list[int]) -> tuple[torch.Tensor, list[int], float]:
    """(logits of the last position, greedy continuation, smallest lead of a greedy choice over the next best)."""
    output = model(torch.tensor([ids]), use_cache=True)
    first, greedy, lead = output.logits[0, -1], [], float("inf")
    for _ in range(GREEDY):
        best = output.logits[0, -1].topk(2)
        greedy.append(best.indices[0].item())
        lead = min(lead, (best.values[0] - best.values[1]).item())
        output = model(best.indices[None, :1], past_key_values=output.past_key_values, use_cache=True)
    return first, greedy, lead


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="any long text; its first 300 tokens are a prompt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--fixture", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    tokenizer = smollm_tokenizer(args.model)
    chat = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name).apply_chat_template
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    text = args.text.read_text(encoding="utf-8")[: 20 * LONG]
    prompts = [
        "The capital of France is",
        'fn fibonacci(n: u64) -> u64 {\n    match n {\n        0 => 0,\n        1 => 1,\n        _ =>',
        chat([{"role": "user", "content": "What is the tallest mountain on Earth?"}], tokenize=False, add_generation_prompt=True),
        tokenizer.decode(encode(text)[:LONG], skip_special_tokens=False),
    ]
    model = AutoModelForCausalLM.from_pretrained(args.model.parent, gguf_file=args.model.name, dtype=torch.float32).eval()
    full, cases = {}, []
    for i, prompt in enumerate(prompts):
        ids = encode(prompt)
        logits, greedy, lead = answer(model, ids)
        full[f"logits.{i}"] = logits.contiguous()
        print(len(ids), lead, repr(tokenizer.decode(greedy, skip_special_tokens=False)))
        cases.append({"prompt": prompt, "tokens": ids, "greedy": greedy, "smallest_lead": float(f"{lead:.3g}"), "argmax": logits.argmax().item(), "max": float(f"{logits.max():.7g}")})
    save_file(full, args.out / "smollm2.safetensors")
    (args.out / "smollm2.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    if args.fixture:
        for case, logits in zip(cases, full.values()):
            case["logits"] = [float(f"{x:.7g}") for x in logits[::STRIDE].tolist()]
        lines = ",\n".join(json.dumps(case) for case in cases)
        args.fixture.write_text(f'{{\n"stride": {STRIDE},\n"cases": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
