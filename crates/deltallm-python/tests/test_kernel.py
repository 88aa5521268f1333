"""Kernels on arrays of numpy."""

import copy
import os
import pickle
import threading

import numpy as np
import pytest

import deltallm
from deltallm import Kernel, Spec


def arrays(tokens, heads=4, kv_heads=2, dim=8, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.standard_normal((tokens, n, dim)).astype(dtype) for n in (heads, kv_heads, kv_heads)]


def reference(q, k, v):
    """Dense causal attention in f64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(*scores.shape[1:], k=0, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v)


def dense(**more):
    return Kernel(4, 2, 8, Spec(kernel="dense", store="f32"), **more)


def test_dense_is_the_reference():
    q, k, v = arrays(100)
    assert np.abs(dense().forward(q, k, v) - reference(q, k, v)).max() < 1e-5


def test_without_thresholds_hybrid_is_the_reference():
    q, k, v = arrays(300)
    kernel = Kernel(4, 2, 8, Spec(store="f32", thresholds={"theta": 0}, skip_margin=None, window=16))
    assert np.abs(kernel.forward(q, k, v) - reference(q, k, v)).max() < 1e-4


def test_calls_go_on_where_the_last_one_ended():
    q, k, v = arrays(90)
    whole, parts = dense().forward(q, k, v), dense()
    rows = [parts.forward(q[a:b], k[a:b], v[a:b]) for a, b in [(0, 50), (50, 51), (51, 90)]]
    assert len(parts) == 90
    assert np.abs(np.concatenate(rows) - whole).max() < 1e-5


@pytest.mark.parametrize("dtype", [np.float16, np.uint16])
def test_results_have_the_type_of_the_queries(dtype):
    full = arrays(40)
    if dtype == np.uint16:  # the upper half of a float: bf16
        small = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in full]
    else:
        small = [x.astype(dtype) for x in full]
    out = dense().forward(*small)
    assert out.dtype == dtype and out.shape == (40, 4, 8)
    numbers = (out.astype(np.uint32) << 16).view(np.float32) if dtype == np.uint16 else out.astype(np.float32)
    assert np.abs(numbers - dense().forward(*full)).max() < 0.05


def test_strides_and_room_for_the_result():
    q, k, v = arrays(60)
    heads_first = [np.ascontiguousarray(x.transpose(1, 0, 2)).transpose(1, 0, 2) for x in (q, k, v)]
    out = np.empty((60, 4, 8), np.float32)
    assert dense().forward(*heads_first, out=out) is out
    assert np.array_equal(out, dense().forward(q, k, v))


def test_arrays_that_numpy_calls_unaligned_are_refused():
    q, k, v = arrays(20)
    record = np.zeros(20, [("tag", "u1"), ("q", "f4", (4, 8)), ("half", "f2", (4, 8))])
    record["q"], record["half"] = q, q
    shifted = np.frombuffer(b"x" + q.tobytes(), np.float32, offset=1).reshape(q.shape)
    for bad in (record["q"], record["half"], shifted):
        with pytest.raises(ValueError, match=r"q: expected an aligned array.*copy\(\)"):
            dense().forward(bad, k, v)
    with pytest.raises(ValueError, match="out: expected an aligned array"):
        dense().forward(q, k, v, out=record["q"])
    assert np.array_equal(dense().forward(record["q"].copy(), k, v), dense().forward(q, k, v))


def test_forks_cuts_and_files(tmp_path):
    q, k, v = arrays(400)
    spec, path = Spec(store="compact"), str(tmp_path / "cache.kv")
    make = lambda: Kernel(4, 2, 8, spec, exact_rewind=8)
    kernel = make()
    kernel.forward(q[:300], k[:300], v[:300])
    fork = kernel.fork()
    deltallm.save(path, [kernel], tokens=range(300), note="a note")
    answer = kernel.forward(q[300:301], k[300:301], v[300:301])
    loaded = make()
    assert deltallm.load(path, [loaded]) == (list(range(300)), "a note")
    for other in (fork, loaded):
        assert np.array_equal(other.forward(q[300:301], k[300:301], v[300:301]), answer)
        other.forward(q[350:351], k[350:351], v[350:351])
        other.truncate(300)
        assert np.array_equal(other.forward(q[300:301], k[300:301], v[300:301]), answer)
    assert kernel.footprint()["total"] < 400 * 2 * 8 * 2 * 4
    with pytest.raises(ValueError, match="kernel"):
        deltallm.load(path, [dense()])
    with pytest.raises(ValueError, match="empty"):
        deltallm.load(path, [loaded])
    with pytest.raises(FileNotFoundError):
        deltallm.load(str(tmp_path / "none.kv"), [make()])


def test_stats():
    q, k, v = arrays(200)
    k[:] = k[0]
    kernel = Kernel(4, 2, 8, Spec(thresholds={"theta": 0.1}))
    kernel.forward(q, k, v)
    stats = kernel.stats()
    assert stats.zero_fraction == pytest.approx(199 / 200) and len(stats.heads) == 2
    assert (stats + stats).sparsity == pytest.approx(stats.sparsity)


def test_specs():
    spec = Spec(store="compact", window=32)
    assert (spec.store, spec.kernel, Spec().store) == ("compact", "hybrid", "f16")
    assert spec.replace(store="f16") == Spec(window=32)
    assert Spec.from_json(spec.to_json()) == spec == pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec)
    with pytest.raises(ValueError, match="windw"):
        Spec(windw=3)
    with pytest.raises(ValueError, match="compact"):
        Kernel(4, 2, 8, Spec(kernel="dense", store="compact"))


NAN = np.full((3, 4, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda q, k, v: (q[:, :3], k, v), "heads"),
        (lambda q, k, v: (q, k[:, :, :7], v), "head_dim|channels"),
        (lambda q, k, v: (q, k[:2], v), "tokens"),
        (lambda q, k, v: (q[0], k, v), "q: expected"),
        (lambda q, k, v: (q.astype(np.float64), k, v), "float64"),
        (lambda q, k, v: (q, k.astype(int), v), "k: expected"),
        (lambda q, k, v: (NAN, k, v), "finite"),
        (lambda q, k, v: ("text", k, v), "q: expected"),
        (lambda q, k, v: (None, k, v), "q: expected"),
        (lambda q, k, v: (np.zeros((2**40, 0, 8), np.float32), k, v), "heads"),
        (lambda q, k, v: (np.broadcast_to(np.float16(0), (2**40, 4, 8)), k, v), "broadcast"),
        (lambda q, k, v: (q, np.broadcast_to(k[:1], k.shape), v), "k: expected .* broadcast"),
    ],
)
def test_bad_arrays_are_errors_and_cost_nothing(bad, says):
    kernel, good = dense(), arrays(3)
    with pytest.raises(ValueError, match=says):
        kernel.forward(*bad(*good))
    assert len(kernel) == 0
    assert np.isfinite(kernel.forward(*good)).all()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_is_an_answer_or_an_error(seed):
    random = np.random.default_rng(seed)
    kernel = Kernel(4, 2, 8, Spec(store=str(random.choice(["f32", "f16", "bf16", "int8", "compact"]))), budget_bytes=100_000)
    for _ in range(30):
        shape = lambda n: (int(random.integers(0, 9)), int(random.choice([n, n, n, 0, 1])), int(random.choice([8, 8, 8, 0, 7])))
        dtype = random.choice([np.float32, np.float32, np.float16, np.uint16, np.int8])
        scale = random.choice([1, 1, 1e30, np.inf])
        q, k, v = ((random.standard_normal(shape(n)) * scale).astype(dtype) for n in (4, 2, 2))
        if random.random() < 0.3:
            q, k, v = q[::-1], k[:, ::-1], v[..., ::-1]
        try:
            kernel.forward(q, k, v)
            kernel.truncate(int(random.integers(0, 20)))
            kernel.begin_prompt(int(random.integers(0, 2**40)))
            kernel.narrow()
        except (ValueError, MemoryError):
            pass
    assert len(kernel) >= 0


def test_sizes_that_cannot_be():
    for sizes in [(0, 1, 8), (4, 3, 8), (4, 2, 0), (2**40, 2**40, 2**40)]:
        with pytest.raises((ValueError, MemoryError)):
            kernel = Kernel(*sizes)
            kernel.forward(*arrays(1, *sizes))
    with pytest.raises(OverflowError):
        Kernel(-1, 1, 8)
    for layer in [10**12, 2**62]:
        with pytest.raises(ValueError, match="layer: expected at most 4096"):
            dense(layer=layer)
    with pytest.raises(ValueError, match="mask"):
        dense(mask="sideways")
    with pytest.raises(MemoryError):
        dense(budget_bytes=10).forward(*arrays(5))
    with pytest.raises(ValueError):
        deltallm.set_num_threads(0)


def test_what_was_observed_outlives_an_error():
    calibrator = deltallm.Calibrator(4, 2, 8, layers=1, zero_fraction=0.4)
    q, k, v = (np.random.default_rng(0).standard_normal((400, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    calibrator.observe(0, q, k, v)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            calibrator.find(lambda spec: 1 / 0)
    with pytest.raises(ValueError, match="layers: expected at most 4096"):
        deltallm.Calibrator(4, 2, 8, layers=10**12, zero_fraction=0.4)


def test_kernels_are_not_pickled():
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(dense())
    with pytest.raises(TypeError):
        copy.deepcopy(dense())


def test_room_for_the_result_is_checked():
    q, k, v = arrays(5)
    for out in [np.empty((5, 4, 7), np.float32), np.empty((5, 4, 8)), q, np.empty((4, 4, 8), np.float32), "text"]:
        with pytest.raises(ValueError):
            dense().forward(q, k, v, out=out)
    locked = np.empty((5, 4, 8), np.float32)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        dense().forward(q, k, v, out=locked)


def test_other_threads_go_on_meanwhile():
    q, k, v = arrays(3000, heads=8, kv_heads=2, dim=64)
    kernel, counted, done = Kernel(8, 2, 64, Spec(kernel="dense")), 0, threading.Event()

    def attend():
        kernel.forward(q, k, v)
        done.set()

    worker = threading.Thread(target=attend)
    worker.start()
    while not done.is_set():
        counted += 1
    worker.join()
    assert counted > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_that_forks_goes_on():
    kernel, inputs = Kernel(8, 2, 64), arrays(600, heads=8, dim=64)
    kernel.forward(*inputs)
    child = os.fork()
    if child == 0:
        ok = np.isfinite(kernel.forward(*inputs)).all()
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
