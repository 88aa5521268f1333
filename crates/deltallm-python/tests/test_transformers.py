"""Small random models of transformers on delta attention."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import deltallm
from deltallm import DeltaCache, Spec

DENSE = Spec(kernel="dense", store="f32")
SMALL = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)


def llama():
    config = transformers.LlamaConfig(**SMALL)
    return transformers.LlamaForCausalLM(config)


def qwen3():
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=16))


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, sliding_window=40))


def gemma3():
    config = transformers.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=40, layer_types=["sliding_attention", "sliding_attention", "full_attention"], query_pre_attn_scalar=16)
    return transformers.Gemma3ForCausalLM(config)


def phi3():
    """A family that the program does not run."""
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, pad_token_id=0))


def gemma2():
    """With soft caps, which SDPA does not have."""
    config = transformers.Gemma2Config(**SMALL, head_dim=16, sliding_window=40, query_pre_attn_scalar=16, attn_logit_softcapping=2.0)
    return transformers.Gemma2ForCausalLM._from_config(config, attn_implementation="eager")


MODELS = [llama, qwen3, mistral, gemma3, phi3, gemma2]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    torch.manual_seed(1)
    return request.param().eval()


def ids(batch, tokens, seed=0):
    return torch.randint(3, 97, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_dense_logits_are_those_of_sdpa(model):
    text = ids(2, 130)
    expected = model(text).logits
    deltallm.patch(model, DENSE)
    with_cache, without = model(text).logits, model(text, use_cache=False).logits
    assert (with_cache - expected).abs().max() < 1e-4
    assert (without - expected).abs().max() < 1e-4
    # In two calls, and token by token.
    cache = DeltaCache(model, DENSE)
    parts = [model(text[:, a:b], past_key_values=cache).logits for a, b in [(0, 100), (100, 101), (101, 130)]]
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-4
    # With the cache of transformers, and padding.
    other = transformers.DynamicCache(config=model.config)
    parts = [model(text[:, a:b], past_key_values=other).logits for a, b in [(0, 30), (30, 31)]]
    assert (torch.cat(parts, 1) - expected[:, :31]).abs().max() < 1e-4
    deltallm.unpatch(model)
    assert (model(text).logits - expected).abs().max() == 0


@torch.inference_mode()
def test_generation_is_that_of_sdpa(model):
    text = ids(1, 60)
    settings = [
        dict(do_sample=False),
        dict(do_sample=False, num_beams=3),
        dict(do_sample=True, top_k=5, temperature=0.7),
        dict(do_sample=False, num_return_sequences=2, num_beams=2),
    ]
    for setting in settings:
        def run():
            torch.manual_seed(3)
            return model.generate(text, max_new_tokens=12, pad_token_id=0, eos_token_id=None, **setting)

        expected = run()
        deltallm.patch(model, DENSE)
        assert torch.equal(run(), expected), setting
        deltallm.unpatch(model)


@torch.inference_mode()
def test_batches_padded_on_the_left(model):
    long, short = ids(1, 70), ids(1, 50, seed=5)
    padded = torch.cat([torch.zeros(1, 20, dtype=torch.long), short], 1)
    batch = torch.cat([long, padded])
    mask = torch.ones_like(batch)
    mask[1, :20] = 0
    deltallm.patch(model, DENSE)
    new = model.generate(batch, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)[:, 70:]
    alone = [model.generate(text, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)[0, text.shape[1]:] for text in (long, short)]
    assert torch.equal(new, torch.stack(alone))


@torch.inference_mode()
def test_hybrid_and_compact_come_close(model):
    text = ids(1, 300)
    expected = model(text).logits.log_softmax(-1)
    for spec in [Spec(), Spec(store="compact")]:
        deltallm.patch(model, spec)
        cache = DeltaCache(model, spec)
        got = model(text, past_key_values=cache).logits.log_softmax(-1)
        assert (expected.exp() * (expected - got)).sum(-1).mean() < 0.01
        assert cache.get_seq_length() == 300 and cache.nbytes() > 0
        assert len(cache.stats()) == 3


@torch.inference_mode()
def test_bfloat16_and_half(model):
    text = ids(1, 50)
    for dtype in (torch.bfloat16, torch.float16):
        model = model.to(dtype)
        expected = model(text).logits.float()
        deltallm.patch(model, DENSE)
        assert (model(text).logits.float() - expected).abs().max() < 0.05
        deltallm.unpatch(model)


@torch.inference_mode()
def test_a_cache_is_cut_saved_and_loaded(tmp_path):
    torch.manual_seed(1)
    model, text, path = deltallm.patch(llama().eval(), Spec(store="compact")), ids(1, 200), str(tmp_path / "cache.kv")
    cache = DeltaCache(model, exact_rewind=16)
    model(text, past_key_values=cache)
    with pytest.raises(ValueError, match="200 tokens"):
        cache.save(path, text[0, :-1])
    cache.save(path, text[0])
    step = lambda cache, token: model(torch.tensor([[token]]), past_key_values=cache).logits
    answer = step(cache, 5)
    cache.crop(-1)
    assert torch.equal(step(cache, 5), answer)
    loaded = DeltaCache(model, exact_rewind=16)
    assert loaded.load(path) == text[0].tolist()
    assert loaded.get_seq_length() == 200
    assert torch.equal(step(loaded, 5), answer)
    with pytest.raises(ValueError, match="empty"):
        loaded.load(path)
    cache.reset()
    assert cache.get_seq_length() == 0


@torch.inference_mode()
def test_tokens_are_taken_back_in_all_layers_or_in_none():
    torch.manual_seed(1)
    config = transformers.Gemma3TextConfig(**SMALL, head_dim=16, sliding_window=40, layer_types=["full_attention", "sliding_attention", "sliding_attention"], query_pre_attn_scalar=16)
    model, text = deltallm.patch(transformers.Gemma3ForCausalLM(config).eval()), ids(1, 200)
    cache = DeltaCache(model)
    # The second layer can go back, and the third cannot: a window of 40 tokens does not reach to the first 50.
    cache.layers[1].exact_rewind = 150
    model(text, past_key_values=cache)
    lengths = lambda: [[len(kernel) for kernel in layer.kernels] + [layer.length] for layer in cache.layers]
    step = lambda cache: model(torch.tensor([[5]]), past_key_values=cache).logits
    with pytest.raises(ValueError, match="have been dropped"):
        cache.crop(-150)
    with pytest.raises(ValueError, match="negative"):
        cache.crop(1)
    assert lengths() == [[200, 200]] * 3
    other = DeltaCache(model)
    other.layers[1].exact_rewind = 150
    model(text, past_key_values=other)
    assert torch.equal(step(cache), step(other))
    cache.crop(-1)
    assert lengths() == [[200, 200]] * 3


def deepseek():
    """Expands its keys after the cache."""
    config = transformers.DeepseekV3Config(**(SMALL | dict(num_key_value_heads=4)), q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1, first_k_dense_replace=3)
    return transformers.DeepseekV3ForCausalLM(config).eval()


def test_what_is_not_done_falls_back_or_says_so():
    torch.manual_seed(1)
    model, text = deltallm.patch(llama()), ids(1, 30)
    with torch.no_grad():
        for other in [transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=64, n_head=4, n_layer=2, vocab_size=97)), deepseek()]:
            with pytest.raises(ValueError, match="model|keys"):
                deltallm.patch(other)
                other.generate(text, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)
    with pytest.warns(UserWarning, match="training"):
        model(text).logits.sum().backward()
    model(text, labels=text).loss.backward()
    with torch.inference_mode():
        with pytest.raises(ValueError, match="padding on the left"):
            mask = torch.ones_like(text)
            mask[0, -5:] = 0
            model(text, attention_mask=mask)
        with pytest.raises(TypeError, match="Spec"):
            deltallm.patch(model, "compact")


@pytest.mark.parametrize("make", [llama, mistral, gemma3])
def test_texts_packed_behind_each_other_do_not_see_each_other(make):
    torch.manual_seed(1)
    model, text = make().eval(), ids(1, 90)
    positions = torch.cat([torch.arange(50), torch.arange(40)]).unsqueeze(0)
    with torch.inference_mode():
        expected = model(text, position_ids=positions, use_cache=False).logits
        got = deltallm.patch(model, DENSE)(text, position_ids=positions, use_cache=False).logits
    assert (got - expected).abs().max() < 1e-4


def llama4():
    """Of which two of three layers attend in chunks."""
    config = transformers.Llama4TextConfig(
        **SMALL, head_dim=16, intermediate_size_mlp=96, num_local_experts=2, interleave_moe_layer_step=100, attention_chunk_size=32, no_rope_layers=[1, 1, 0]
    )
    return transformers.Llama4ForCausalLM(config)


@pytest.mark.parametrize("use_cache", [False, True])
def test_layers_that_attend_in_chunks(use_cache):
    torch.manual_seed(1)
    model, text = llama4().eval(), ids(1, 90)
    with torch.inference_mode():
        expected = model(text, use_cache=False).logits
        got = deltallm.patch(model, DENSE)(text, use_cache=use_cache).logits
    assert (got - expected).abs().max() < 1e-4


def test_windows_and_chunks_hold_where_sdpa_takes_over():
    for make in (mistral, llama4):
        torch.manual_seed(1)
        model, text = make().eval(), ids(1, 90)
        with torch.no_grad():
            expected = model(text, use_cache=False).logits
            model = deltallm.patch(model, DENSE)
            for module in model.modules():
                if hasattr(module, "attention_dropout"):
                    module.training, module.attention_dropout = True, 1e-12
            with pytest.warns(UserWarning, match="dropout"):
                deltallm._transformers._SAID.clear()
                got = model(text, use_cache=False).logits
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("make", [phi3, llama4])
def test_any_model_is_calibrated(make, tmp_path):
    torch.manual_seed(1)
    model = make().eval()

    class Words:
        bos_token_id = None

        def __call__(self, text, return_tensors, add_special_tokens):
            import types

            return types.SimpleNamespace(input_ids=torch.tensor([[3 + ord(c) % 90 for c in text]]))

    text = "the quick brown fox jumps over the lazy dog; " * 60
    found = deltallm.calibrate(model, Words(), text, zero_fraction=0.4, exact_prompt=0, tokens=400, windows=2, held_out=2, progress=False)
    # In a random model nothing matters, and whether layers are coded is a matter of rounding.
    assert 0 <= found.held_out["zero_fraction"] < 0.9
    assert found.held_out["kl"] >= 0 and found.held_out["tokens"] == 2 * 399
    path = str(tmp_path / "profile.json")
    found.save(path, model="random")
    assert Spec.from_profile(path) == found.spec
    deltallm.patch(model, found.spec)
    with torch.inference_mode():
        assert model(ids(1, 100)).logits.isfinite().all()
    with pytest.raises(ValueError, match="longer text"):
        deltallm.calibrate(model, Words(), "short", progress=False)
