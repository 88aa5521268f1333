"""Writes the trained model as GGUF, reads the file back with `transformers` and measures both on the held-out book."""

import argparse
import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize
from transformers import AutoModelForCausalLM

import data
from model import Config, Llama
from train import loss_on, prepare

PROMPTS = ["Once upon a time", "The old witch looked at the princess and said", "There was once a poor fisherman who"]


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's Llama rotates neighbouring rows, this model (like Hugging Face's) the two halves of a head: reorder the rows of q and k."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tensors(model: Llama):
    """(GGUF name, f32 array) of every weight; the head is tied, so there is no `output.weight`."""
    c = model.c
    names = {"attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
    yield "token_embd.weight", model.embed.weight.detach().numpy()
    for i, layer in enumerate(model.layers):
        for ours, theirs in names.items():
            weight = getattr(layer, ours).weight.detach().numpy()
            if ours in "qk":
                weight = interleave(weight, c.heads if ours == "q" else c.kv_heads)
            yield f"blk.{i}.{theirs}.weight", weight
    yield "output_norm.weight", model.norm.weight.detach().numpy()


def write(path: Path, model: Llama, tokenizer_file: Path, kind: T):
    c = model.c
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("Fairy Tales 3.5M")
    w.add_description("A small Llama trained on public-domain books of fairy tales")
    w.add_license("MIT OR Apache-2.0")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == T.Q8_0 else gguf.LlamaFileType.ALL_F32)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_context_length(c.context)
    w.add_embedding_length(c.hidden)
    w.add_block_count(c.layers)
    w.add_feed_forward_length(c.ffn)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_freq_base(c.rope_theta)
    w.add_rope_dimension_count(c.head_dim)
    w.add_vocab_size(c.vocab)

    bpe = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    end = bpe["vocab"][data.END]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([gguf.TokenType.CONTROL if t == data.END else gguf.TokenType.NORMAL for t in tokens])
    w.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    w.add_bos_token_id(end)
    w.add_eos_token_id(end)
    w.add_add_bos_token(False)

    for name, weight in tensors(model):
        t = kind if weight.ndim == 2 else T.F32
        w.add_tensor(name, quantize(weight, t), raw_dtype=t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Logits(torch.nn.Module):
    """A transformers model called like ours."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(ids).logits


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
    model = Llama(Config(**state["config"])).eval()
    model.load_state_dict(state["model"])
    print(f"step {state['step']} of {state['steps']}, {len(stream)} training tokens, {len(held)} held-out tokens of {held_bytes} bytes")

    def measure(name, run):
        loss = loss_on(run, held, model.c.context)
        bits = loss * (len(held) - 1) / held_bytes / math.log(2)
        print(f"{name}: loss {loss:.4f}, perplexity per token {math.exp(loss):.2f}, bits per byte {bits:.4f}, perplexity per byte {2**bits:.3f}", flush=True)

    measure("PyTorch f32", model)
    ids = torch.from_numpy(held[: model.c.context])[None]
    with torch.no_grad():
        expected = model(ids)
    for kind, name in [(T.F32, "fairy-tales-f32.gguf"), (T.Q8_0, "fairy-tales.gguf")]:
        path = args.out / name
        write(path, model, args.out / "tokenizer.json", kind)
        back = AutoModelForCausalLM.from_pretrained(args.out, gguf_file=name, dtype=torch.float32).eval()
        with torch.no_grad():
            difference = (back(ids).logits - expected).abs().max().item()
        print(f"{name}: {path.stat().st_size} bytes, logits differ from PyTorch's by at most {difference:.2g}")
        measure(name, Logits(back))
    torch.manual_seed(1)
    for prompt in PROMPTS:
        start = torch.tensor([[tokenizer.token_to_id(data.END), *tokenizer.encode(prompt).ids]])
        text = back.generate(start, attention_mask=torch.ones_like(start), do_sample=True, temperature=0.7, top_p=0.95, top_k=0, max_new_tokens=160, pad_token_id=0)
        print("---\n" + tokenizer.decode(text[0].tolist()))


if __name__ == "__main__":
    main()
