"""The trained model as a GGUF file."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import quantize

import data
from bitnet import BitLinear, weight_codes
from model import Model
from names import gguf_name

FILE_TYPES = {T.F32: gguf.LlamaFileType.ALL_F32, T.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0, T.TQ2_0: gguf.LlamaFileType.MOSTLY_TQ2_0}
ARCHITECTURES = {"llama": "llama", "smollm3": "smollm3", "bitnet": "bitnet-b1.58"}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF's Llama rotates neighbouring rows, this model (like Hugging Face's) the two halves of a head: reorder the rows of q and k.

    GGUF's BitNet rotates the halves too and keeps the rows."""
    rows, cols = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def in_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """The other way round."""
    rows, cols = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def tensors(model: Model, kind: T):
    """(GGUF name, f32 array, type) of every weight: vectors F32, ternary matrices TQ2_0, other matrices `kind`.

    The head is tied, so there is no `output.weight`."""
    c = model.c
    for name, p in model.named_parameters():
        module = name.split(".")[-2]
        if isinstance(model.get_submodule(name.removesuffix(".weight")), BitLinear):
            codes, scale = weight_codes(p.detach())
            # The blocks of TQ2_0 take their largest value for the scale, here the one scale of the matrix.
            yield gguf_name(name), (codes * scale).numpy(), T.TQ2_0
        elif not c.ternary and module in ("q", "k"):
            yield gguf_name(name), interleave(p.detach().numpy(), c.heads if module == "q" else c.kv_heads), kind
        else:
            yield gguf_name(name), p.detach().numpy(), kind if p.ndim == 2 else T.F32


def write(path: Path, model: Model, tokenizer_file: Path, kind: T, name: str, description: str):
    c = model.c
    w = gguf.GGUFWriter(path, ARCHITECTURES[c.architecture])
    w.add_name(name)
    w.add_description(description)
    w.add_license("MIT OR Apache-2.0")
    w.add_file_type(FILE_TYPES[T.TQ2_0 if c.ternary else kind])
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

    for tensor, weight, t in tensors(model, kind):
        w.add_tensor(tensor, quantize(weight, t), raw_dtype=t)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
