"""The picture of the method, from the keys and queries of one head of a real model.

    pip install -r requirements.txt          # the CPU build of torch is enough
    python method.py --model SmolLM2-135M-Instruct.Q4_1.gguf --text Grimms-Fairy-Tales.txt --start "A certain king had a beautiful garden" \
        --out ../../docs/images/method.png

Equations are those of docs/method.md. The figures in the titles and the legend are computed here and printed as well.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, SKY, ORANGE, VERMILION, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#D9D9D9"
FUTURE, EXACT, FAR, SKIPPED = range(4)
TILE_LANES = 64


def capture(model: Path, text: str, tokens: int, layer: int, kv_head: int) -> tuple[np.ndarray, np.ndarray]:
    """Scaled queries [group, tokens, head_dim] and keys [tokens, head_dim] of one kv head, after RoPE."""
    tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).backend_tokenizer
    # The model's own pre-tokenizer splits digits; transformers does not read that from the file.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    ids = tokenizer.encode(text[: 20 * tokens], add_special_tokens=False).ids[:tokens]
    assert len(ids) == tokens, f"expected a text of at least {tokens} tokens, got {len(ids)}"
    llama = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32).eval()
    rotate, rotated = modeling_llama.apply_rotary_pos_emb, []
    modeling_llama.apply_rotary_pos_emb = lambda *args, **kwargs: rotated.append(rotate(*args, **kwargs)) or rotated[-1]
    with torch.no_grad():
        llama(torch.tensor([ids]))
    q, k = (x[0].double().numpy() for x in rotated[layer])
    group = len(q) // len(k)
    return q[kv_head * group : (kv_head + 1) * group] / np.sqrt(q.shape[-1]), k[kv_head]


def encode(keys: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1: deltas and reconstruction, both [tokens, head_dim]."""
    deltas, rebuilt, reference = np.zeros_like(keys), np.zeros_like(keys), np.zeros(keys.shape[1])
    for t, key in enumerate(keys):
        sent = (np.abs(key - reference) > theta) | (t == 0)
        deltas[t, sent] = (key - reference)[sent]
        reference = np.where(sent, key, reference)
        rebuilt[t] = reference
    return deltas, rebuilt


def pair_map(q: np.ndarray, keys: np.ndarray, rebuilt: np.ndarray, window: int, sinks: int, margin: float) -> np.ndarray:
    """Equations 4 and 5: what becomes of each (query, key) pair; the same for all query heads of the group."""
    n, group = len(keys), len(q)
    query, key = np.arange(n)[:, None], np.arange(n)[None]
    causal = key <= query
    exact = causal & ((key > query - window) | (key < sinks))
    kinds = np.select([exact, causal], [EXACT, FAR], FUTURE)
    best = np.where(exact, q @ keys.T, -np.inf).max(-1)
    matters = (q @ rebuilt.T > best[..., None] - margin) & (kinds == FAR)
    # As `query_tile` of deltallm-attn: the next power of two of 64 / group, in 4..=64.
    tile = min(max(1 << (TILE_LANES // group - 1).bit_length(), 4), 64)
    for start in range(0, n, tile):
        rows = slice(start, start + tile)
        skipped = (kinds[rows] == FAR) & ~matters[:, rows].any((0, 1))
        kinds[rows][skipped] = SKIPPED
    return kinds


def draw_channel(ax, keys, deltas, rebuilt, theta, channel, tokens):
    t, key, held = np.arange(tokens), keys[:tokens, channel], rebuilt[:tokens, channel]
    sent = deltas[:tokens, channel] != 0
    # A key is compared with what was held before it.
    before = np.concatenate([held[:1], held[:-1]])
    ax.fill_between(t, before - theta, before + theta, step="mid", color=SKY, alpha=0.3, lw=0, label="last sent value ± θ")
    ax.step(t, held, where="mid", color=BLUE, lw=1.8, label="reconstruction k̂")
    ax.plot(t[~sent], key[~sent], "o", ms=3.6, color="#666666", label="key, not sent")
    ax.plot(t[sent], key[sent], "D", ms=4.6, color=VERMILION, label="key, sent")
    ax.set(xlabel="token", ylabel="value of one key channel", xlim=(-0.5, tokens - 0.5))
    low, high = min(key.min(), before.min() - theta), max(key.max(), before.max() + theta)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.3 * (high - low))
    ax.legend(loc="upper left", ncols=2, fontsize=9.5, frameon=False, columnspacing=1, handletextpad=0.4, borderaxespad=0.2)
    ax.set_title("1. Send a channel only when it has moved")
    return 1 - sent.mean()


def draw_deltas(ax, deltas, channel, tokens):
    limit = np.percentile(np.abs(deltas[deltas != 0]), 95)
    colours = plt.get_cmap("PuOr").with_extremes(bad="white")
    shown = deltas[:tokens].T
    ax.pcolormesh(np.ma.masked_equal(shown, 0), cmap=colours, vmin=-limit, vmax=limit)
    ax.add_patch(Rectangle((0, channel), tokens, 1, fill=False, ec=BLUE, lw=1.8))
    ax.annotate("panel 1", (tokens, channel + 0.5), (3, 0), textcoords="offset points", va="center", rotation=90, color=BLUE, fontsize=9.5)
    ax.set(xlabel=f"token (first {tokens} of {len(deltas)})", ylabel="channel")
    zeros = (deltas == 0).mean()
    ax.set_title(f"2. The delta matrix: {zeros:.0%} zeros")
    return zeros


def draw_pairs(ax, kinds):
    causal = (kinds != FUTURE).sum()
    share = lambda kind: (kinds == kind).sum() / causal
    ax.imshow(kinds, cmap=ListedColormap(["white", BLUE, ORANGE, GREY]), vmin=0, vmax=3, interpolation="nearest", aspect="auto")
    entries = [(BLUE, "exact: window, sinks", EXACT), (ORANGE, "far: through the deltas", FAR), (GREY, "far: value skipped", SKIPPED)]
    handles = [Patch(facecolor=colour, label=f"{name}, {share(kind):.0%}") for colour, name, kind in entries]
    ax.legend(handles=handles, loc="upper right", fontsize=9.5, frameon=False, borderaxespad=0.2)
    ax.set(xlabel="key", ylabel="query")
    ax.set_title("3. What becomes of each pair")
    return {name: share(kind) for _, name, kind in entries}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--start", default="", help="the passage begins with the first occurrence of this")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--kv-head", type=int, default=1)
    parser.add_argument("--channel", type=int, default=28)
    parser.add_argument("--shown", type=int, default=64, help="tokens of the first panel")
    parser.add_argument("--theta", type=float, default=1.0)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--margin", type=float, default=4.0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    text = args.text.read_text(encoding="utf-8")
    text = text[text.index(args.start) :]
    q, keys = capture(args.model, text, args.tokens, args.layer, args.kv_head)
    deltas, rebuilt = encode(keys, args.theta)
    kinds = pair_map(q, keys, rebuilt, args.window, args.sinks, args.margin)

    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlepad": 8})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=[1.25, 1.0, 1.0])
    zeros_channel = draw_channel(left, keys, deltas, rebuilt, args.theta, args.channel, args.shown)
    zeros = draw_deltas(middle, deltas, args.channel, args.shown)
    shares = draw_pairs(right, kinds)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=150)

    assert np.abs(keys - rebuilt).max() <= args.theta
    print(f"zero fraction {zeros:.3f}; of channel {args.channel} in the first {args.shown} tokens {zeros_channel:.3f}")
    far = shares["far: through the deltas"] + shares["far: value skipped"]
    print({name: round(float(share), 3) for name, share in shares.items()}, f"skipped of far {shares['far: value skipped'] / far:.3f}")
    print(f"sparsity {zeros * far:.3f}")


if __name__ == "__main__":
    main()
