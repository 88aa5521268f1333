//! The parts of a decoder layer.

mod add;
mod gates;
mod mlp;
mod rms_norm;
mod rope;
mod threads;

pub(crate) use add::{add, scale};
pub(crate) use mlp::gated_mlp;
pub(crate) use rms_norm::{rms_norm, rms_norm_in_place};
pub(crate) use rope::{Rope, Rotations};
