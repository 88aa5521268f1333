//! Settings from measurement: which key channels need care, which values can be skipped, and where neither pays.
//!
//! A threshold costs accuracy where queries look and saves entries where keys rest. Both are measured on a text, layer by
//! layer, from the inputs of dense attention. Settings made from them are then tried on another text. [`Calibrator`] does this
//! for any engine; start there.
//!
//! - [`CalibrationRequest`]: what is asked for, such as the largest divergence from dense attention.
//! - [`HeldOutText`]: makes the [`Score`] of a setting from logits. [`Perplexity`] and [`Comparison`] are the sums behind it.
//! - [`Calibrated`]: the settings found, as a [`KernelSpec`](crate::KernelSpec) and as a profile to save.
//! - [`RateCurves`]: how many entries each key channel would transmit, for a range of thresholds.
//!
//! The derivation is in `docs/method.md`, "Calibration".

mod allocation;
mod calibrator;
mod error;
mod found;
mod held_out;
mod logits;
mod parallel;
mod pays;
mod perplexity;
mod rates;
mod request;
mod score;
mod search;
mod sensitivity;

pub use calibrator::Calibrator;
pub use error::CalibrationError;
pub use found::Calibrated;
pub use held_out::HeldOutText;
pub use perplexity::{Comparison, Perplexity, TokenScore, score_rows};
pub use rates::RateCurves;
pub use request::CalibrationRequest;
pub use score::Score;
