"""Attention and cache for transformers: `patch(model, spec)`, or `attn_implementation="deltallm"` with a `DeltaCache`."""

import types
import warnings

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from . import Kernel, Spec, load, save

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
        self.kernels, self.length, self.is_initialized = None, 0, False

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states, value_states, *args, **kwargs):
        """Keys and values as they are: what is attended to is in the kernels, and these get there with the queries."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.length += key_states.shape[-2]
        setattr(key_states, _LAYER, self)
        return key_states, value_states

    def attend(self, query, key, value, padding, scaling, softcap, sinks):
        """`[batch, heads, tokens, channels]` to `[batch, tokens, heads, channels]`; `padding` is False where there is no token."""
        batch, heads, tokens, channels = query.shape
        if self.kernels is None:
            make = lambda: Kernel(
                heads,
                key.shape[1],
                channels,
                self.spec,
                layer=self.layer,
                value_dim=value.shape[-1],
                mask=self.mask,
                scale=scaling,
                softcap=softcap,
                sink_logits=sinks,
                exact_rewind=self.exact_rewind,
            )
            self.kernels = [make() for _ in range(batch)]
        if len(self.kernels) != batch:
            raise ValueError(f"expected the {len(self.kernels)} sequences of the cache, got a batch of {batch}")
        rows = []
        for row, kernel in enumerate(self.kernels):
            first = 0 if padding is None else _first_token(padding[row, -tokens:])
            q, k, v = (_array(states[row, :, first:]) for states in (query, key, value))
            out = _tensor(kernel.forward(q, k, v), query.dtype) if first < tokens else None
            if first:
                nothing = query.new_zeros((first, heads, value.shape[-1]))
                out = nothing if out is None else torch.cat([nothing, out])
            rows.append(out)
        return rows[0].unsqueeze(0) if batch == 1 else torch.stack(rows)

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
        number = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
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
        save(path, [row[0] for row in kernels], tokens)

    def load(self, path, model):
        """Takes over what was saved, into a cache that is still empty; returns the tokens."""
        config = getattr(model, "config", model).get_text_config(decoder=True)
        heads = config.num_attention_heads
        channels = getattr(config, "head_dim", None) or config.hidden_size // heads
        made = []
        for layer in self.layers:
            if layer.kernels is not None:
                raise ValueError("load: expected an empty cache, got one in use")
            scale = _scale_of(model, layer.layer)
            made.append(
                Kernel(
                    heads,
                    config.num_key_value_heads,
                    channels,
                    layer.spec,
                    layer=layer.layer,
                    mask=layer.mask,
                    scale=scale,
                    softcap=getattr(config, "attn_logit_softcapping", None),
                    exact_rewind=layer.exact_rewind,
                )
            )
        tokens, _ = load(path, made)
        for layer, kernel in zip(self.layers, made):
            layer.kernels, layer.length, layer.is_initialized = [kernel], len(kernel), True
        return tokens


def _scale_of(model, layer):
    """What the model multiplies scores with in a layer."""
    for module in model.modules():
        if getattr(module, "layer_idx", None) == layer and hasattr(module, "scaling"):
            return module.scaling
    return None


_SAID = set()


def _fall_back(why):
    if why not in _SAID:
        _SAID.add(why)
        warnings.warn(f"deltallm: {why}; SDPA does it", stacklevel=4)


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, s_aux=None, **kwargs):
    """The attention function that transformers calls."""
    layer = getattr(key, _LAYER, None)
    why = None
    if query.device.type != "cpu":
        why = f"tensors are on {query.device}"
    elif dropout or (torch.is_grad_enabled() and query.requires_grad):
        why = "gradients and dropout are for training"
    elif kwargs.get("position_bias") is not None or (attention_mask is not None and attention_mask.ndim != 2):
        why = "masks and biases of the caller's are not attended to"
    elif layer is None and not getattr(module, "is_causal", True):
        why = "layers that are not causal have nothing to skip"
    if why is not None:
        if layer is not None:
            raise ValueError(f"a DeltaCache holds no keys for others: {why}; use another cache, or deltallm.unpatch(model)")
        _fall_back(why)
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            tokens = query.shape[-2]
            mask = sdpa_mask(query.shape[0], tokens, key.shape[-2], q_offset=key.shape[-2] - tokens, attention_mask=mask)
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    sinks = None if s_aux is None else s_aux.detach().float().tolist()
    if layer is None:
        # All keys come with the call, and are coded for it.
        spec = getattr(module, "_deltallm_spec", None)
        layer = DeltaLayer(getattr(module, "layer_idx", 0) or 0, spec, sliding_window=kwargs.get("sliding_window"))
    return layer.attend(query, key, value, attention_mask, scaling, softcap, sinks), None


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=None, attention_mask=None, **kwargs):
    """Kernels know what a query attends to; what they are told is where a batch is padded."""
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask[:, -kv_length:]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def patch(model, spec=None):
    """Lets a model of transformers run on delta attention, as `spec` says; returns the model. `unpatch` takes it back.

    >>> model = AutoModelForCausalLM.from_pretrained(name)
    >>> deltallm.patch(model, deltallm.Spec(store="compact"))
    >>> model.generate(**tokenizer("Once upon a time", return_tensors="pt"))
    """
    unpatch(model)
    spec = spec or Spec()
    if not isinstance(spec, Spec):
        raise TypeError(f"spec: expected a deltallm.Spec, got {type(spec).__name__}")
    model._deltallm_before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    model._deltallm_spec = spec
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module._deltallm_spec = spec

    def with_cache(args, kwargs):
        trains = torch.is_grad_enabled()
        if kwargs.get("past_key_values") is None and kwargs.get("use_cache", True) is not False and not trains:
            kwargs["past_key_values"] = DeltaCache(model, spec)
        return args, kwargs

    model._deltallm_hook = model.register_forward_pre_hook(lambda _, args, kwargs: with_cache(args, kwargs), with_kwargs=True)
    generate = model.generate

    def generate_with_cache(self, *args, **kwargs):
        if kwargs.get("use_cache", True) is not False:
            kwargs.setdefault("past_key_values", DeltaCache(model, spec))
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
