//! Thresholds from measurement: which key channels need care, and what each would cost.
//!
//! A threshold costs accuracy where queries look and saves entries where keys rest. Both are measured on a text, layer by
//! layer, from the inputs of dense attention:
//!
//! 1. [`Sensitivity`] sums what an error in each channel of the far keys would do to the layer's output.
//! 2. [`RateCurves`] counts what each channel would transmit, for a range of thresholds.
//! 3. [`Allocation`] brings them together: thresholds of all layers for a wanted zero fraction.
//!
//! The derivation is in `docs/method.md`, "Calibration".

mod allocation;
mod rates;
mod sensitivity;

pub use allocation::Allocation;
pub use rates::RateCurves;
pub use sensitivity::Sensitivity;
