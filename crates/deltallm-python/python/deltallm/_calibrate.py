"""Calibration of any causal language model that transformers runs."""

import math
import sys

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from . import Calibrator, Spec
from ._transformers import DeltaCache, DeltaLayer, _array, _cache_argument, _chunk, mask, patch, unpatch

_OBSERVING = "deltallm_observing"
_observer = None


def _observe(module, query, key, value, attention_mask, scaling=None, softcap=None, s_aux=None, **kwargs):
    """Dense attention that shows its inputs."""
    if attention_mask is not None:
        raise ValueError("model: expected one with plain causal masks, got other ones")
    if _observer is not None:
        _observer(module, query, key, value, {"scaling": scaling, "softcap": softcap})
    dense = DeltaLayer(module.layer_idx, Spec(kernel="dense", store="f32"), sliding_window=kwargs.get("sliding_window"), chunk=_chunk(module))
    sinks = None if s_aux is None else s_aux.detach().float().tolist()
    return dense.attend(query, key, value, None, scaling, softcap, sinks), None


AttentionInterface.register(_OBSERVING, _observe)
AttentionMaskInterface.register(_OBSERVING, mask)


def calibrate(model, tokenizer, text, *, max_kl=0.01, zero_fraction=None, store="f16", exact_prompt=None, tokens=512, windows=4, held_out=2, progress=True):
    """Finds the settings of a model on a text: a `Calibrated`, with its `spec` and what that costs on text that was held out.

    `windows` windows of `tokens` tokens are looked at, and settings are tried on `held_out` others. Both are best as long as the texts that the
    model will read. The goal is a divergence from dense attention of at most `max_kl` nats, or a `zero_fraction`. Prompts of up to
    `exact_prompt` tokens are attended exactly; unless it is given, for each layer as many as gain nothing.
    """
    global _observer
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    needed = tokens * (windows + held_out)
    if len(ids) < needed:
        raise ValueError(f"text: expected at least {needed} tokens, got {len(ids)}: give a longer text, or fewer windows or tokens")
    first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    cut = [torch.tensor([first + ids[i * tokens : (i + 1) * tokens - len(first)].tolist()]) for i in range(windows + held_out)]
    config = model.config.get_text_config(decoder=True)
    masks = [layer.mask for layer in DeltaCache(model).layers]
    say = (lambda text: print(f"\r{text}", end="", file=sys.stderr, flush=True)) if progress and sys.stderr.isatty() else (lambda text: None)

    patched = getattr(model, "_deltallm_spec", None)
    unpatch(model)
    own = model.config._attn_implementation
    calibrator, projected = None, set()

    def observe(module, query, key, value, kwargs):
        nonlocal calibrator
        layer = module.layer_idx
        if calibrator is None:
            goal = {"zero_fraction": zero_fraction} if zero_fraction is not None else {"max_kl": max_kl}
            calibrator = Calibrator(
                query.shape[1],
                key.shape[1],
                query.shape[-1],
                len(masks),
                store=store,
                exact_prompt=exact_prompt,
                scale=kwargs.get("scaling"),
                softcap=kwargs.get("softcap"),
                masks=masks,
                **goal,
            )
        projection = _output_projection(module)
        if layer not in projected and projection is not None:
            calibrator.output_projection(layer, projection.weight.detach().float().numpy())
            projected.add(layer)
        calibrator.observe(layer, _array(query[0].float()), _array(key[0].float()), _array(value[0].float()))

    try:
        model.set_attn_implementation(_OBSERVING)
        with torch.inference_mode():
            _observer = observe
            for done, window in enumerate(cut[:windows]):
                say(f"observing {done + 1} of {windows}   ")
                model(window, use_cache=False)
            _observer = None
            dense = [_log_probabilities(model, window, None)[0] for window in cut[windows:]]
        if calibrator is None:
            raise ValueError("model: expected one whose attention is called through transformers' interface, got another")
        runs, run = calibrator.runs(), 0

        def score(spec):
            nonlocal run
            run += 1
            say(f"trying settings {run} of at most {runs}   ")
            return _score(model, spec, cut[windows:], dense)

        return calibrator.find(score)
    finally:
        _observer = None
        unpatch(model)
        model.set_attn_implementation(own)
        if patched is not None:
            patch(model, patched)
        say("")


def _output_projection(attention):
    """The linear layer behind the heads, by the names that models give it."""
    layers = (getattr(attention, name, None) for name in ("o_proj", "out_proj", "dense"))
    return next((layer for layer in layers if isinstance(layer, torch.nn.Linear)), None)


def _log_probabilities(model, window, cache):
    """After every token but the last, and of the tokens that follow."""
    logits = model(window, use_cache=cache is not None, **{_cache_argument(model): cache}).logits[0, :-1].float()
    logs = torch.log_softmax(logits, -1)
    return logs, logs.gather(1, window[0, 1:, None])[:, 0]


def _score(model, spec, windows, dense):
    """What a spec costs on these windows beside the logarithms of dense attention's probabilities."""
    patch(model, spec)
    kl = loss = loss_dense = same = count = 0
    layers = None
    try:
        with torch.inference_mode():
            for window, expected in zip(windows, dense):
                cache = DeltaCache(model, spec)
                logs, of_text = _log_probabilities(model, window, cache)
                gap = (expected - logs).double()
                # p (ln p - ln q) - p + q: the last two add up to nothing, and no term is below zero by rounding.
                kl += float((expected.double().exp() * (gap + torch.expm1(-gap))).sum())
                same += int((expected.argmax(-1) == logs.argmax(-1)).sum())
                loss -= float(of_text.sum())
                loss_dense -= float(expected.gather(1, window[0, 1:, None]).sum())
                count += len(of_text)
                stats = cache.stats()
                layers = stats if layers is None else [a + b for a, b in zip(layers, stats)]
    finally:
        unpatch(model)
    return {
        "tokens": count,
        "kl": kl / count,
        "perplexity_dense": math.exp(loss_dense / count),
        "perplexity_change": math.exp((loss - loss_dense) / count) - 1,
        "top1_agreement": same / count,
        "layers": layers,
    }
