"""Delta attention (DeltaLLM, arXiv 2507.19608) on CPUs: sparse keys, smaller caches, no training.

>>> import numpy as np, deltallm
>>> kernel = deltallm.Kernel(heads=4, kv_heads=2, head_dim=8, spec=deltallm.Spec(store="compact"))
>>> q, k, v = (np.ones((100, heads, 8), np.float32) for heads in (4, 2, 2))
>>> kernel.forward(q, k, v).shape
(100, 4, 8)

With transformers:

>>> deltallm.patch(model, deltallm.Spec(store="compact"))   # model.generate and model(...) run on delta attention
"""

from ._deltallm import (
    Calibrated,
    Calibrator,
    Kernel,
    Spec,
    Stats,
    __version__,
    load,
    num_threads,
    peek,
    save,
    set_num_threads,
)

__all__ = [
    "Calibrated",
    "Calibrator",
    "DeltaCache",
    "Kernel",
    "Spec",
    "Stats",
    "calibrate",
    "load",
    "num_threads",
    "patch",
    "peek",
    "save",
    "set_num_threads",
    "unpatch",
]

# These need torch and transformers, which take seconds to import.
_LATER = {"DeltaCache": "transformers", "patch": "transformers", "unpatch": "transformers", "calibrate": "calibrate"}


def __getattr__(name):
    if name in _LATER:
        import importlib

        return getattr(importlib.import_module(f"._{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LATER])
