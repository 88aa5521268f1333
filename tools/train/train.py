"""Tokenizer, training and held-out perplexity; see README.md. An interrupted run continues where it stopped."""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from model import Config, Model
from muon import Muon
from names import gguf_name
from write_gguf import in_halves

SEED = 20250731
TOKENS_PER_STEP = 6144
# (share of the steps, sequence length): short sequences are cheaper and teach the words; the last part sees the whole context.
LENGTHS = [(0.40, 256), (0.30, 512), (0.30, 1024)]
WARMUP_STEPS, STABLE_SHARE = 50, 0.40


@dataclass
class Recipe:
    config: Config
    steps: int
    # A step's gradient is summed over parts of so many tokens: small parts stay in the cache.
    part: int
    # The type of matrix products and attention; all else is f32.
    products: torch.dtype


RECIPES = {
    "llama": Recipe(Config(), steps=1000, part=TOKENS_PER_STEP, products=torch.float32),
    # Goes on from the Llama (--weights), whose fourth layer learns to do without rotation.
    "smollm3": Recipe(Config(architecture="smollm3"), steps=150, part=TOKENS_PER_STEP, products=torch.float32),
    "bitnet": Recipe(Config(architecture="bitnet", ffn=768), steps=600, part=1024, products=torch.bfloat16),
}


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up, stable, then linear decay to zero."""
    decay = (steps - step) / (steps * (1 - STABLE_SHARE))
    return min(1.0, (step + 1) / WARMUP_STEPS, decay)


def schedule(step: int, steps: int) -> tuple[int, int]:
    """(sequence length, index of the batch among those of this length)."""
    start = 0
    for share, length in LENGTHS:
        end = start + round(share * steps)
        if step < end or length == LENGTHS[-1][1]:
            return length, step - start
        start = end
    raise AssertionError("the last length covers the rest")


@torch.no_grad()
def loss_on(model, stream, context: int, limit: int | None = None) -> float:
    """Mean next-token loss in nats over consecutive windows of `context` tokens, or over the first `limit` of them."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, context)[:limit]:
        ids = torch.from_numpy(stream[start : start + context + 1])
        total += F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    model.train()
    return total / count


def prepare(corpus: Path, out: Path, held_out: str):
    """The tokenizer (trained on the training books alone, once) and the two token streams."""
    train, held = data.load(corpus, held_out)
    path = out / "tokenizer.json"
    if not path.exists():
        data.train_tokenizer(train, Config.vocab).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))
    return tokenizer, data.encode(tokenizer, train), data.encode(tokenizer, held), sum(len(s.encode()) for s in held)


def weights_of(path: Path, model: Model) -> dict[str, torch.Tensor]:
    """The weights of a GGUF file by the names of the model."""
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    c, weights = model.c, {}
    for name, _ in model.named_parameters():
        weight = tensors[gguf_name(name)]
        if name.endswith((".q.weight", ".k.weight")):
            weight = in_halves(weight, c.heads if name.endswith(".q.weight") else c.kv_heads)
        weights[name] = torch.from_numpy(weight)
    return weights


def embedding_of(path: Path) -> torch.Tensor:
    """The token embedding of a GGUF file."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "token_embd.weight")
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))


def save(path: Path, **state):
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.rename(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", default="The-Violet-Fairy-Book")
    parser.add_argument("--architecture", choices=RECIPES, default="llama")
    parser.add_argument("--embedding", type=Path, help="start from the token embedding of this GGUF file, of the same tokenizer")
    parser.add_argument("--weights", type=Path, help="start from all weights of this GGUF file, of the same tokenizer and sizes")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--stop", type=int, help="stop before this step (the schedule stays that of --steps)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    recipe = RECIPES[args.architecture]
    args.steps = args.steps or recipe.steps
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)

    _, stream, held, _ = prepare(args.corpus, args.out, args.held_out)
    model = Model(recipe.config)
    if args.embedding:
        model.embed.weight.data.copy_(embedding_of(args.embedding))
    if args.weights:
        model.load_state_dict(weights_of(args.weights, model))
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = Muon(matrices)
    adam = torch.optim.AdamW([{"params": [model.embed.weight]}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizers, peaks = [muon, adam], [muon.defaults["lr"], adam.defaults["lr"]]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(stream)} training tokens, {len(held)} held out", flush=True)

    checkpoint, first = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        # Up to the end of the constant rate all schedules are the same.
        if state["steps"] != args.steps and state["step"] > STABLE_SHARE * min(state["steps"], args.steps):
            raise SystemExit(f"{checkpoint} belongs to a run of {state['steps']} steps, too far on to become one of {args.steps}")
        first = state["step"]
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"]):
            o.load_state_dict(s)

    def store(step):
        save(checkpoint, step=step, steps=args.steps, config=asdict(recipe.config), model=model.state_dict(), optimizers=[o.state_dict() for o in optimizers])

    products = torch.autocast("cpu", recipe.products, enabled=recipe.products != torch.float32)

    @torch.compile(dynamic=False)
    @products
    def loss_of(inputs, targets):
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    clock, mean = time.time(), 0.0
    for step in range(first, min(args.steps, args.stop or args.steps)):
        length, index = schedule(step, args.steps)
        inputs, targets = (torch.from_numpy(t) for t in data.batch(stream, length, TOKENS_PER_STEP // length, index, SEED))
        parts = TOKENS_PER_STEP // recipe.part
        for part in zip(inputs.chunk(parts), targets.chunk(parts)):
            loss = loss_of(*part) / parts
            loss.backward()
            mean += loss.item() / 10
        for optimizer, peak in zip(optimizers, peaks):
            for group in optimizer.param_groups:
                group["lr"] = peak * learning_rate_factor(step, args.steps)
            with products:
                optimizer.step()
        model.zero_grad(set_to_none=True)
        if step % 10 == 9:
            print(f"step {step + 1} length {length} loss {mean:.4f} tokens/s {10 * TOKENS_PER_STEP / (time.time() - clock):.0f}", flush=True)
            clock, mean = time.time(), 0.0
        if step % 50 == 49:
            store(step + 1)
        if step % 100 == 99:
            print(f"step {step + 1} held out {loss_on(model, held, length, limit=20480 // length):.4f}", flush=True)
            clock = time.time()
    if args.stop is None:
        store(args.steps)
        print(f"held out, all: {loss_on(model, held, recipe.config.context):.4f}")


if __name__ == "__main__":
    main()
