"""Writes the trained model as GGUF, reads it back with `transformers` and measures both on the held-out book."""

import argparse
import math
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as T
from transformers import AutoModelForCausalLM

import data
from as_transformers import from_gguf, write_directory
from model import Config, Model
from train import loss_on, prepare
from write_gguf import write

PROMPTS = ["Once upon a time", "The old witch looked at the princess and said", "There was once a poor fisherman who"]


class Logits(torch.nn.Module):
    """A transformers model called like ours."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


def exports(model: Model, out: Path):
    """Writes the files; (file name, the same read by transformers) of each."""
    tokenizer = out / "tokenizer.json"
    if model.c.ternary:
        write_directory(out / "bitnet-tiny", model)
        yield "bitnet-tiny", AutoModelForCausalLM.from_pretrained(out / "bitnet-tiny", dtype=torch.float32)
        path = out / "bitnet-tiny.gguf"
        write(path, model, tokenizer, T.Q8_0, "Fairy Tales BitNet 4.5M", "A small BitNet b1.58 trained on public-domain books of fairy tales")
        yield path.name, from_gguf(path, model)
    elif model.c.architecture == "smollm3":
        # transformers reads no GGUF file of this architecture; `deltallm evaluate` says the same perplexity.
        write(out / "fairy-tales-smollm3.gguf", model, tokenizer, T.F32, "Fairy Tales SmolLM3 3.5M", "The Llama of fairy tales with every fourth layer unrotated")
    else:
        for kind, name in [(T.F32, "fairy-tales-f32.gguf"), (T.Q8_0, "fairy-tales.gguf")]:
            write(out / name, model, tokenizer, kind, "Fairy Tales 3.5M", "A small Llama trained on public-domain books of fairy tales")
            yield name, AutoModelForCausalLM.from_pretrained(out, gguf_file=name, dtype=torch.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the training run")
    parser.add_argument("--held-out", default="The-Violet-Fairy-Book")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer, stream, held, held_bytes = prepare(args.corpus, args.out, args.held_out)
    state = torch.load(args.out / "checkpoint.pt", weights_only=True)
    model = Model(Config(**state["config"])).eval()
    model.load_state_dict(state["model"])
    print(f"step {state['step']} of {state['steps']}, {len(stream)} training tokens, {len(held)} held-out tokens of {held_bytes} bytes")

    def measure(name, run):
        loss = loss_on(run, held, model.c.context)
        bits = loss * (len(held) - 1) / held_bytes / math.log(2)
        print(f"{name}: loss {loss:.4f}, perplexity per token {math.exp(loss):.2f}, bits per byte {bits:.4f}, perplexity per byte {2**bits:.3f}", flush=True)

    measure("PyTorch f32", model)
    if model.c.ternary:
        # Official masters are bf16; rounded first, directory and GGUF hold the same codes.
        for p in model.parameters():
            p.data = p.data.bfloat16().float()
        measure("PyTorch, weights rounded to bf16", model)
    ids = torch.from_numpy(held[: model.c.context])[None]
    with torch.no_grad():
        expected = model(ids)
    back = None
    for name, back in exports(model, args.out):
        back.eval()
        with torch.no_grad():
            difference = (back(ids).logits - expected).abs()
        print(f"{name}: logits differ from PyTorch's by at most {difference.max():.2g}, on average {difference.mean():.2g}")
        measure(name, Logits(back))
    if back is None:
        return
    torch.manual_seed(1)
    for prompt in PROMPTS:
        start = torch.tensor([[tokenizer.token_to_id(data.END), *tokenizer.encode(prompt).ids]])
        text = back.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=0.7, top_p=0.95, top_k=0, max_new_tokens=160, pad_token_id=0)
        print("---\n" + tokenizer.decode(text[0].tolist()))


if __name__ == "__main__":
    main()
