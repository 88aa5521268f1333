//! The attention kernels of deltallm for programs in C, and in whatever else calls C.
//!
//! The crate builds a shared library (`libdeltallm_capi.so`) and a static one (`libdeltallm_capi.a`); their header is
//! `include/deltallm.h`, and `docs/c-api.md` is the guide, with a whole program. In Rust use the crate `deltallm`.
//!
//! One [`DeltallmKernel`] is the attention of one layer together with its key-value cache:
//! [`deltallm_kernel_new`] makes it from a text in JSON, [`deltallm_kernel_forward`] appends tokens and attends
//! ([`deltallm_kernel_forward_half`] in f16 and bf16, [`deltallm_forward_batch`] for several sequences), [`deltallm_kernel_truncate`] takes tokens back,
//! [`deltallm_kernel_fork`] makes another one that shares the cache, [`deltallm_kernel_save`] and [`deltallm_kernel_load`] bring it into a file and
//! back, [`deltallm_kernel_free`] ends it.
//!
//! # The configuration
//!
//! One JSON object. A field that is not listed here is an error. The names are those of the command line and of
//! profiles.
//!
//! | field | for | what | if absent |
//! |---|---|---|---|
//! | `kernel` | | `"dense"` (exact), `"delta"` (delta-coded keys everywhere) or `"hybrid"` (exact window and sinks, the rest delta-coded) | required |
//! | `heads` | | query heads, 1 to 4096, a multiple of `kv_heads` | required |
//! | `kv_heads` | | key-value heads | required |
//! | `head_dim` | | channels of a head, 1 to 4096 | required |
//! | `value_dim` | | channels of a value and of a result, 1 to 4096 | `head_dim` |
//! | `mask` | | which keys a query attends to: `"causal"`, `"sliding:512"` (the latest 512), `"chunked:8192"` (those of its own chunk) or `"bidirectional"` (also later ones of the same call); what nobody attends to any more is dropped | `"causal"` |
//! | `sink_logits` | | a number for each query head that stands in the softmax's denominator like one more score | none |
//! | `log_sum_exp` | | whether `deltallm_kernel_log_sum_exp` has an answer | `false` |
//! | `exact_rewind` | | how many tokens `deltallm_kernel_truncate` takes back without a trace | `0` |
//! | `store` | | how the cache keeps keys and values: `"f32"`, `"f16"`, `"bf16"`; `"int8"` for dense and hybrid, `"compact"` for delta and hybrid | `"f32"` |
//! | `scale` | | scores are `q . k * scale` | 1/sqrt(`head_dim`) |
//! | `softcap` | | scores become `softcap * tanh(score / softcap)` | none |
//! | `precision` | | the numbers that a prompt's products are made of: `"f32"`; `"int16"` (AVX-512) or `"bf16"` (Arm), which are f32 on CPUs without the instructions | `"f32"` |
//! | `simd` | | instruction set: `"scalar"`, `"avx2"`, `"avx512"`, `"neon"` | the best of this CPU, or what the environment variable `DELTALLM_SIMD` names |
//! | `parallel` | | whether to spread work over threads (as many as `RAYON_NUM_THREADS` says); results do not depend on it | `true` |
//! | `budget_bytes` | | bytes the cache may hold; a call that would take more is refused with status `BUDGET` | no limit |
//! | `thresholds` | delta, hybrid | one of the three below | `{"target_sparsity": 0.3}` |
//! | `window` | hybrid | keys scored exactly: `64`, the latest, or `"block:0.05"`, blocks of that share of the prompt | `64` |
//! | `sinks` | hybrid | first keys, always scored exactly | `4` |
//! | `skip_margin` | hybrid | skip values whose key scores this many nats below the best exact one; `"0.6ln+0.5"` is 0.6 ln(keys) + 0.5, at least 3.5; `"0.6ln+0.5:2"`, at least 2; 1.5 more in decoding | that of the profile; without one `6.5`, and nothing is skipped beside `thresholds` |
//! | `exact_prompt` | hybrid | prompts of up to this many tokens are attended exactly | `0` |
//! | `profile` | delta, hybrid | the object that `calibrate` writes; it takes the place of the five above | none |
//! | `layer` | delta, hybrid | which layer of the profile this kernel is, from 0 | required with `profile` |
//!
//! | `thresholds` | in the units of the keys |
//! |---|---|
//! | `{"theta": 0.6}` | one for all key channels |
//! | `{"target_sparsity": 0.3}` | rise and fall until that share of the deltas is zero |
//! | `{"channels": [...]}` | `kv_heads * head_dim` of them, head after head |
//!
//! Fields for other kernels are checked and not used, so the same text with another `kernel` makes the exact counterpart.
//! What a profile says of `store`, `precision`, `scale` and `softcap` holds where the configuration does not say it; `calibrate` writes none of
//! them. A layer's own store in a profile holds in any case. Layers that the profile makes dense, by themselves or because
//! the `mask` lets queries attend to few keys, are dense, in `int8` for `compact`. Without a profile a kernel is what it is called: for masks of up to
//! 512 keys `dense` is faster than `hybrid`.
//!
//! # Errors
//!
//! Every function that can fail returns a [`DeltallmStatus`]; [`deltallm_last_error`] says in words what was expected and
//! what came. No panic leaves the library: it becomes the status `PANIC`, and a kernel in which one happened answers that
//! from then on. (Rust prints the panic to stderr. In a build with `panic = "abort"` there is nothing to catch. Running
//! out of the system's memory ends the process, as in any Rust program; `budget_bytes` is there for that.)
//!
//! # Threads
//!
//! Different kernels can be used by different threads at the same time. Calls on one kernel wait for each other, and can
//! come from any thread. Only [`deltallm_kernel_free`] must not run beside another call on the same kernel.

#![warn(missing_debug_implementations)]

mod batch;
mod config;
mod error;
mod forward;
mod half;
mod kernel;
mod memory;
mod saved;
#[cfg(test)]
mod tests;

pub use batch::deltallm_forward_batch;
pub use error::{DeltallmStatus, deltallm_last_error};
pub use forward::{
    deltallm_kernel_attend, deltallm_kernel_forward, deltallm_kernel_forward_views,
    deltallm_kernel_log_sum_exp,
};
pub use half::{
    DELTALLM_HALF_BF16, DELTALLM_HALF_F16, DeltallmHalf, deltallm_kernel_attend_half,
    deltallm_kernel_forward_half, deltallm_kernel_forward_half_views,
};
pub use kernel::{
    DELTALLM_ABI_VERSION, DeltallmFootprint, DeltallmKernel, DeltallmStats, deltallm_abi_version,
    deltallm_kernel_begin_prompt, deltallm_kernel_footprint, deltallm_kernel_free,
    deltallm_kernel_head_stats, deltallm_kernel_len, deltallm_kernel_new, deltallm_kernel_stats,
    deltallm_kernel_truncate, deltallm_version,
};
pub use memory::{DeltallmHalfView, DeltallmHalfViewMut, DeltallmView, DeltallmViewMut};
pub use saved::{deltallm_kernel_fork, deltallm_kernel_load, deltallm_kernel_save};
