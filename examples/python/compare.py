"""Delta attention beside SDPA on a model of transformers: the texts, the time, the bytes, a picture of the sparsity, and a session that
is saved and come back to.

    python compare.py MODEL [--gguf FILE] [--text FILE] [--out sparsity.png] [--save session.delta]

MODEL is a name on the hub or a folder; with --gguf a folder with that GGUF file.
"""

import argparse
import os
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import deltallm


def read_and_continue(model, ids, new, cache):
    """The new tokens, the seconds that reading took, and seconds a token."""
    with torch.inference_mode():
        start = time.perf_counter()
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits
        read = time.perf_counter() - start
        tokens = []
        start = time.perf_counter()
        for _ in range(new):
            tokens.append(int(logits[0, -1].argmax()))
            logits = model(torch.tensor([[tokens[-1]]]), past_key_values=cache).logits
    return tokens, read, (time.perf_counter() - start) / new


def bytes_of(cache):
    if isinstance(cache, deltallm.DeltaCache):
        return cache.nbytes()
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def picture(cache, path):
    """The zero fraction of every layer and kv head."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [[head.zero_fraction for head in stats.heads] for stats in cache.stats()]
    figure, axes = plt.subplots(figsize=(3.5 + 0.5 * len(rows[0]), 1 + 0.2 * len(rows)), layout="constrained")
    image = axes.imshow(rows, aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axes.set(xlabel="kv head", ylabel="layer", title="zeros among key deltas (0: keys held whole)", xticks=range(len(rows[0])))
    figure.colorbar(image)
    figure.savefig(path, dpi=150)


def come_back(model, cache, ids, path):
    """Saves what has been read, and goes on from the file as another process would."""
    cache.save(path, ids)
    start = time.perf_counter()
    loaded = deltallm.DeltaCache(model, cache.spec)
    loaded.load(path)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        here, there = (model(torch.tensor([[ids[-1]]]), past_key_values=each).logits for each in (cache, loaded))
    print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB, {len(ids)} tokens back in {1e3 * seconds:.0f} ms")
    print(f"          what comes next is {'the same, bit for bit' if torch.equal(here, there) else 'NOT the same'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--gguf", help="name of a GGUF file in that folder")
    parser.add_argument("--text", help="a text to read first [default: this script]")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of the text")
    parser.add_argument("--new", type=int, default=32, help="tokens to continue it by")
    parser.add_argument("--store", default="compact", help="how keys and values are cached")
    parser.add_argument("--threads", type=int, help="of torch and of deltallm")
    parser.add_argument("--out", help="where the picture goes [default: no picture]")
    parser.add_argument("--save", help="where the session goes [default: it is not saved]")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
        deltallm.set_num_threads(args.threads)

    more = {"gguf_file": args.gguf} if args.gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(args.model, **more)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, **more).eval()
    text = open(args.text or __file__, encoding="utf-8").read()
    ids = tokenizer(text, return_tensors="pt").input_ids[:, : args.tokens]

    runs = {}
    for name, spec in [("SDPA", None), ("deltallm", deltallm.Spec(store=args.store))]:
        if spec is not None:
            deltallm.patch(model, spec)
        make = lambda: deltallm.DeltaCache(model, spec) if spec is not None else DynamicCache(config=model.config)
        read_and_continue(model, ids[:, :64], 2, make())  # once, unmeasured: threads and memory are ready then
        cache = make()
        tokens, read, each = read_and_continue(model, ids, args.new, cache)
        runs[name] = tokens
        print(f"{name:9} {ids.shape[1]} tokens read in {read:.2f} s, then {1 / each:.1f} tokens/s; cache {bytes_of(cache) / 1e6:.1f} MB")
        print(f"          {tokenizer.decode(tokens)!r}")
    same = next((i for i, (a, b) in enumerate(zip(*runs.values())) if a != b), args.new)
    print(f"the first {same} of {args.new} tokens are the same")
    if args.out:
        picture(cache, args.out)
    if args.save:
        come_back(model, cache, ids[0].tolist() + tokens, args.save)


if __name__ == "__main__":
    main()
