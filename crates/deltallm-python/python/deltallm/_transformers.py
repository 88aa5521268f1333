"""Attention and cache for transformers: `patch(model, spec)`, or `attn_implementation="deltallm"` with a `DeltaCache`."""

import inspect
import json
import types
import warnings

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from . import Kernel, Spec, load, peek, save

NAME = "deltallm"

# The layer of a cache that keys have just been given to, as an attribute of the keys on their way to the attention function.
_LAYER = "_deltallm_layer"


def _array(tensor):
    """The numbers of `[heads, tokens, channels]` as `[tokens, heads, channels]`, where they lie; bfloat16 by its bits."""
    tensor = tensor.detach().transpose(0, 1)
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    elif tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.numpy()


def _tensor(array, dtype):
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor.to(dtype)


class DeltaLayer(CacheLayerMixin):
    """The caches of one layer: a kernel for each sequence of the batch. Keys and values go into them when they are attended."""

    is_croppable = True
    supports_early_init = False

    def __init__(self, layer=0, spec=None, sliding_window=None, chunk=None, exact_rewind=0):
        super().__init__()
        self.layer, self.spec, self.exact_rewind = layer, spec or Spec(), exact_rewind
        self.mask = "causal"
        if sliding_window is not None:
            self.mask = f"sliding:{sliding_window}"
        elif chunk is not None:
            self.mask = f"chunked:{chunk}"
        self.is_sliding = self.mask != "causal"
        self.reset()

    def reset(self):
        self.kernels, self.made, self.length, self.is_initialized, self.waits = None, None, 0, False, False

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states, value_states, *args, **kwargs):
        """Keys and values as they are: what is attended to is in the kernels, and these get there with the queries."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.waits:
            raise ValueError(
                f"layer {self.layer}: expected the keys of a DeltaCache to be attended by deltallm as they are, got a model that attends otherwise, or changes them: it is not supported"
            )
        self.waits = True
        setattr(key_states, _LAYER, self)
        return key_states, value_states

    def make(self, shape, number):
        """Kernels without tokens."""
        self.made = shape
        self.kernels = [
            Kernel(**shape, spec=self.spec, layer=self.layer, mask=self.mask, exact_rewind=self.exact_rewind) for _ in range(number)
        ]

    def attend(self, query, key, value, padding, scaling, softcap, sinks):
        """`[batch, heads, tokens, channels]` to `[batch, tokens, heads, channels]`; `padding` is False where there is no token."""
        batch, heads, tokens, channels = query.shape
        keys = key.shape[-2]
        self.waits = False
        if self.kernels is None:
            shape = dict(heads=heads, kv_heads=key.shape[1], head_dim=channels, value_dim=value.shape[-1], scale=scaling, softcap=softcap, sink_logits=sinks)
            self.make(shape, batch)
        if len(self.kernels) != batch:
            raise ValueError(f"expected the {len(self.kernels)} sequences of the cache, got a batch of {batch}")
        firsts = [0 if padding is None else _first_token(padding[row, -keys:]) for row in range(batch)]
        before = [len(kernel) for kernel in self.kernels]
        rows = []
        try:
            for row, (kernel, first) in enumerate(zip(self.kernels, firsts)):
                first_query = max(0, first - (keys - tokens))
                out = query.new_zeros((tokens, heads, value.shape[-1]))
                if first_query < tokens:
                    states = (query[row, :, first_query:], key[row, :, first:], value[row, :, first:])
                    got = _tensor(kernel.forward(*map(_array, states)), query.dtype)
                    if first_query:
                        out[first_query:] = got
                    else:
                        out = got
                rows.append(out)
        except BaseException:
            for kernel, length in zip(self.kernels, before):
                kernel.truncate(min(length, len(kernel)))
            raise
        self.length += keys
        return rows[0].unsqueeze(0) if batch == 1 else torch.stack(rows)

    def activate_past_recording(self):
        """Before assisted generation: what is guessed wrongly is taken back without a trace."""
        if self.kernels is None:
            self.exact_rewind = max(self.exact_rewind, 64)

    def get_seq_length(self):
        return self.length

    def get_mask_sizes(self, query_length):
        return self.length + query_length, 0

    def get_max_length(self):
        return -1

    def crop(self, tokens_to_remove):
        if tokens_to_remove > 0:
            raise ValueError(f"crop: expected a number of tokens to remove, as a negative number, got {tokens_to_remove}")
        for kernel in self.kernels or []:
            kernel.truncate(max(0, len(kernel) + tokens_to_remove))
        self.length = max(0, self.length + tokens_to_remove)

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices):
        if self.kernels is not None:
            self.kernels = [self.kernels[index].fork() for index in indices.tolist()]

    def batch_repeat_interleave(self, repeats):
        if self.kernels is not None:
            self.kernels = [kernel.fork() for kernel in self.kernels for _ in range(repeats)]

    def offload(self):
        pass

    def prefetch(self):
        pass


def _first_token(row):
    """Where the tokens of a sequence begin that is padded on the left."""
    real = row.nonzero()
    if len(real) == 0:
        return len(row)
    first = int(real[0])
    if not bool(row[first:].all()):
        raise ValueError("attention_mask: expected padding on the left, got some between tokens or on the right; tokenizer.padding_side = 'left'")
    return first


class DeltaCache(Cache):
    """A cache for `model`, whose layers are attended as `spec` says. `save` and `load` bring it to a file and back."""

    def __init__(self, model, spec=None, exact_rewind=0):
        config = getattr(model, "config", model).get_text_config(decoder=True)
        self.spec = spec or getattr(model, "_deltallm_spec", None) or Spec()
        if getattr(config, "num_kv_shared_layers", 0):
            raise ValueError("expected a model whose layers have keys of their own, got one whose layers share them")
        number = config.num_hidden_layers
        types_ = getattr(config, "layer_types", None) or ["full_attention"] * number
        if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
            types_ = ["sliding_attention"] * number
        layers = []
        for layer, kind in enumerate(types_[:number]):
            if kind == "full_attention":
                limits = {}
            elif kind == "sliding_attention":
                limits = {"sliding_window": config.sliding_window}
            elif kind == "chunked_attention":
                limits = {"chunk": config.attention_chunk_size}
            else:
                raise ValueError(
                    f"layer {layer}: expected full_attention, sliding_attention or chunked_attention, got {kind}, which has no keys to code"
                )
            layers.append(DeltaLayer(layer, self.spec, exact_rewind=exact_rewind, **limits))
        super().__init__(layers=layers)

    def crop(self, tokens_to_remove):
        """Takes tokens back in all layers or in none: those with a mask hold nothing that is no longer attended to, and may refuse."""
        masked = [layer for layer in self.layers if layer.is_sliding]
        before = [(layer.length, layer.kernels and [kernel.fork() for kernel in layer.kernels]) for layer in masked]
        try:
            for layer in masked:
                layer.crop(tokens_to_remove)
        except BaseException:
            for layer, (length, kernels) in zip(masked, before):
                layer.length, layer.kernels = length, kernels
            raise
        for layer in self.layers:
            if not layer.is_sliding:
                layer.crop(tokens_to_remove)

    def stats(self):
        """What was saved: for each layer the `Stats` of all sequences together."""
        sums = []
        for layer in self.layers:
            total = None
            for kernel in layer.kernels or []:
                total = kernel.stats() if total is None else total + kernel.stats()
            sums.append(total)
        return sums

    def nbytes(self):
        """Bytes of all caches."""
        return sum(kernel.footprint()["total"] for layer in self.layers for kernel in layer.kernels or [])

    def save(self, path, tokens):
        """Writes the caches of one sequence and its tokens."""
        kernels = [layer.kernels for layer in self.layers]
        if any(row is None or len(row) != 1 for row in kernels):
            raise ValueError("save: expected a cache of one sequence that has been attended to")
        tokens = [int(token) for token in tokens]
        if len(tokens) != self.get_seq_length():
            raise ValueError(f"save: expected the {self.get_seq_length()} tokens of the cache, got {len(tokens)}")
        save(path, [row[0] for row in kernels], tokens, json.dumps([layer.made for layer in self.layers]))

    def load(self, path):
        """Takes over what was saved, into a cache that is still empty and has the same spec; returns the tokens."""
        if any(layer.kernels is not None for layer in self.layers):
            raise ValueError("load: expected an empty cache, got one in use")
        _, note, number = peek(path)
        if number != len(self.layers):
            raise ValueError(f"{path}: expected {len(self.layers)} layers, got {number}")
        try:
            for layer, shape in zip(self.layers, json.loads(note)):
                layer.make(shape, 1)
            tokens, _ = load(path, [layer.kernels[0] for layer in self.layers])
        except BaseException:
            self.reset()
            raise
        for layer in self.layers:
            layer.length, layer.is_initialized = len(layer.kernels[0]), True
        return tokens


_SAID = set()


def _fall_back(why):
    if why not in _SAID:
        _SAID.add(why)
        warnings.warn(f"deltallm: {why}; SDPA does it", stacklevel=4)


def _chunk(module):
    """The chunk in which a layer attends, or None."""
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    types_ = getattr(config, "layer_types", None)
    chunked = types_ is not None and layer is not None and types_[layer] == "chunked_attention"
    return config.attention_chunk_size if chunked else None


def _left_padding(attention_mask, query):
    """How many tokens each sequence is padded with."""
    if attention_mask is None:
        return torch.zeros(query.shape[0], dtype=torch.long, device=query.device)
    return (attention_mask.cumsum(-1) == 0).sum(-1)


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, s_aux=None, **kwargs):
    """The attention function that transformers calls."""
    layer = getattr(key, _LAYER, None)
    why = None
    if query.device.type != "cpu":
        why = f"tensors are on {query.device}"
    elif dropout or (torch.is_grad_enabled() and query.requires_grad):
        why = "gradients and dropout are for training"
    elif kwargs.get("position_bias") is not None or (attention_mask is not None and attention_mask.ndim != 2):
        why = "masks and biases of other kinds are not attended to"
    elif layer is None and not getattr(module, "is_causal", True):
        why = "layers that are not causal have nothing to skip"
    if why is None:
        if layer is None:
            # All keys come with the call, and are coded for it.
            spec = getattr(module, "_deltallm_spec", None)
            layer = DeltaLayer(getattr(module, "layer_idx", 0) or 0, spec, sliding_window=kwargs.get("sliding_window"), chunk=_chunk(module))
        sinks = None if s_aux is None else s_aux.detach().float().tolist()
        return layer.attend(query, key, value, attention_mask, scaling, softcap, sinks), None
    if layer is not None:
        raise ValueError(f"a DeltaCache holds no keys for others: {why}; use another cache, or deltallm.unpatch(model)")
    if softcap is not None or s_aux is not None:
        raise ValueError(f"{why}, and SDPA has no soft caps or sinks: deltallm.unpatch(model)")
    _fall_back(why)
    causal = getattr(module, "is_causal", True)
    tokens, keys = query.shape[-2], key.shape[-2]
    window, chunk = kwargs.get("sliding_window"), _chunk(module)
    if causal and (attention_mask is None and (keys > tokens or window or chunk) or attention_mask is not None and attention_mask.ndim == 2):
        function = sliding_window_causal_mask_function(window) if window else causal_mask_function
        if chunk:
            function = chunked_causal_mask_function(chunk, _left_padding(attention_mask, query))
        attention_mask = sdpa_mask(
            query.shape[0], tokens, keys, q_offset=keys - tokens, mask_function=function, attention_mask=attention_mask, local_size=window or chunk, device=query.device
        )
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function, attention_mask=None, local_size=None, device="cpu", **kwargs):
    """Kernels know what a query attends to; what they are told is where a batch is padded. Masks of other kinds are made for SDPA."""
    # Sequences packed behind each other, and whatever else a mask was combined with, come without leave to skip it.
    local = local_size is not None and kwargs.get("allow_is_causal_skip", True)
    plain = mask_function is causal_mask_function or local
    if not plain or torch.is_grad_enabled() or torch.device(device).type != "cpu":
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function=mask_function, attention_mask=attention_mask, local_size=local_size, device=device, **kwargs
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, -kv_length:]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def _cache_argument(model):
    """What a model calls the cache that it is given: `past_key_values` until transformers 5.23, `cache` since."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _wants_cache(kwargs):
    """Whether a call leaves it to the model to bring a cache."""
    given = any(kwargs.get(name) is not None for name in ("cache", "past_key_values"))
    return kwargs.get("use_cache", True) is not False and not given


def patch(model, spec=None):
    """Lets a model of transformers run on delta attention, as `spec` says; returns the model. `unpatch` takes it back.

    >>> model = AutoModelForCausalLM.from_pretrained(name)
    >>> deltallm.patch(model, deltallm.Spec(store="compact"))
    >>> model.generate(**tokenizer("Once upon a time", return_tensors="pt"))
    """
    spec = spec or Spec()
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a deltallm.Spec, got {type(spec).__name__}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError("model: expected a decoder, got an encoder with a decoder")
    unpatch(model)
    DeltaCache(model, spec)  # says what it does not support
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if model.config.get_text_config(decoder=True)._attn_implementation != NAME:
        model.set_attn_implementation(before)
        raise ValueError("model: expected one that calls attention through transformers' interface, got another")
    model._deltallm_before, model._deltallm_spec = before, spec
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module._deltallm_spec = spec

    def with_cache(_, args, kwargs):
        if _wants_cache(kwargs) and not torch.is_grad_enabled() and model.device.type == "cpu":
            kwargs[_cache_argument(model)] = DeltaCache(model, spec)
        return args, kwargs

    model._deltallm_hook = model.register_forward_pre_hook(with_cache, with_kwargs=True)
    generate = model.generate

    def generate_with_cache(self, *args, **kwargs):
        if _wants_cache(kwargs) and self.device.type == "cpu":
            if kwargs.get("cache_implementation") or getattr(self.generation_config, "cache_implementation", None):
                raise ValueError("cache_implementation: expected none, because a patched model has a DeltaCache")
            kwargs[_cache_argument(model)] = DeltaCache(model, spec)
        return generate(*args, **kwargs)

    model.generate = types.MethodType(generate_with_cache, model)
    return model


def unpatch(model):
    """Gives a patched model its own attention back; returns the model."""
    if hasattr(model, "_deltallm_hook"):
        model._deltallm_hook.remove()
        model.set_attn_implementation(model._deltallm_before)
        for name in ("_deltallm_hook", "_deltallm_before", "_deltallm_spec", "generate"):
            model.__dict__.pop(name, None)
        for module in model.modules():
            module.__dict__.pop("_deltallm_spec", None)
    return model
