//! Internal ground of `deltallm`: no promises; use `deltallm_attn`'s re-export of [`Isa`].
//!
//! Everything that depends on the CPU starts here. [`Isa`] is an instruction set that this machine has, found once per process;
//! a value of it is the proof. [`dispatch!`] compiles an expression for each of them. [`features`] has the instructions that
//! only some CPUs of an instruction set have, with a token as proof of each, and [`tuning`] the constants that were fitted by
//! measuring. The rest is arithmetic that attention and linear layers share, [`convert`], [`math`], [`dot`] and [`prefetch`]; and
//! [`weight_order`], for linear layers alone.
//!
//! A function that needs instructions takes the token of their instruction set, or of the feature, as an argument, and is safe to
//! call: nobody can make a token on a machine without them.
#![deny(unsafe_code)] // allowed in single modules, where a token is turned into a call
#![warn(missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arch;
pub mod convert;
pub mod dot;
mod isa;
pub mod math;
pub mod tuning;
pub mod weight_order;

pub use arch::{features, prefetch};
pub use fearless_simd;
pub use isa::{Isa, IsaError};
