from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

Store = Literal["f32", "f16", "bf16", "int8", "compact"]
Numbers = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

__version__: str

class Footprint(TypedDict):
    keys: int
    values: int
    window: int
    bookkeeping: int
    total: int

class HeldOut(TypedDict):
    tokens: int
    kl: float
    perplexity_dense: float
    perplexity_change: float
    top1_agreement: float
    zero_fraction: float
    sparsity: float
    values_skipped: float

class Score(TypedDict):
    tokens: int
    kl: float
    perplexity_dense: float
    perplexity_change: float
    top1_agreement: float
    layers: Sequence[Stats]

class Spec:
    """Attention settings of all layers of a model; what is not said has its default."""

    def __init__(
        self,
        *,
        kernel: Literal["hybrid", "dense", "delta"] = ...,
        store: Store = ...,
        precision: Literal["f32", "int16", "bf16"] = ...,
        scale: float | None = ...,
        softcap: float | None = ...,
        thresholds: dict[str, Any] = ...,
        window: int | str = ...,
        sinks: int = ...,
        skip_margin: float | str | None = ...,
        exact_prompt: int = ...,
        dense_up_to: int = ...,
        layers: list[dict[str, Any]] = ...,
    ) -> None: ...
    def replace(self, **fields: Any) -> Spec: ...
    @staticmethod
    def from_profile(path: str, store: Store = "f16") -> Spec: ...
    @staticmethod
    def from_json(text: str) -> Spec: ...
    def to_json(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def store(self) -> str: ...

class Stats:
    """What delta coding and value skipping save."""

    @property
    def heads(self) -> list[Stats]: ...
    @property
    def zero_fraction(self) -> float: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def exact_share(self) -> float: ...
    @property
    def values_skipped(self) -> float: ...
    def __add__(self, other: Stats) -> Stats: ...

class Kernel:
    """The attention of one layer together with its key-value cache."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        spec: Spec | None = None,
        *,
        layer: int = 0,
        value_dim: int | None = None,
        mask: str = "causal",
        sink_logits: Sequence[float] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        exact_rewind: int = 0,
        budget_bytes: int | None = None,
    ) -> None: ...
    def forward(self, q: Numbers, k: Numbers, v: Numbers, out: NDArray[np.float32] | None = None) -> Numbers: ...
    def begin_prompt(self, tokens: int) -> None: ...
    def truncate(self, length: int) -> None: ...
    def fork(self) -> Kernel: ...
    def narrow(self) -> int: ...
    def stats(self) -> Stats: ...
    def footprint(self) -> Footprint: ...
    def __len__(self) -> int: ...

class Calibrator:
    """Finds the settings of a model: show it what the layers are given, then let it try."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        layers: int,
        *,
        max_kl: float | None = None,
        zero_fraction: float | None = None,
        store: Store = "f16",
        window: int = 64,
        sinks: int = 4,
        exact_prompt: int | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        masks: Sequence[str] | None = None,
    ) -> None: ...
    def output_projection(self, layer: int, weights: NDArray[np.float32]) -> None: ...
    def observe(self, layer: int, q: Numbers, k: Numbers, v: Numbers) -> None: ...
    def runs(self) -> int: ...
    def find(self, score: Callable[[Spec], Score]) -> Calibrated: ...

class Calibrated:
    """Settings that were found, with what they cost on text that was held out."""

    @property
    def spec(self) -> Spec: ...
    @property
    def held_out(self) -> HeldOut: ...
    def save(self, path: str, model: str = "", text_sha256: str = "") -> None: ...

class DeltaCache(Cache):
    """A cache for a model of transformers, whose layers are attended as a spec says."""

    spec: Spec
    def __init__(self, model: PreTrainedModel, spec: Spec | None = None, exact_rewind: int = 0) -> None: ...
    def stats(self) -> list[Stats | None]: ...
    def nbytes(self) -> int: ...
    def save(self, path: str, tokens: Sequence[int]) -> None: ...
    def load(self, path: str) -> list[int]: ...

def save(path: str, kernels: Sequence[Kernel], tokens: Sequence[int] = ..., note: str = "") -> None: ...
def load(path: str, kernels: Sequence[Kernel]) -> tuple[list[int], str]: ...
def peek(path: str) -> tuple[list[int], str, int]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def patch(model: PreTrainedModel, spec: Spec | None = None) -> PreTrainedModel: ...
def unpatch(model: PreTrainedModel) -> PreTrainedModel: ...
def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    max_kl: float = 0.01,
    zero_fraction: float | None = None,
    store: Store = "f16",
    exact_prompt: int | None = None,
    tokens: int = 512,
    windows: int = 4,
    held_out: int = 2,
    progress: bool = True,
) -> Calibrated: ...
