//! What `calibrate` does, apart from printing: the search for the settings of a model.

mod search;
mod skip_margins;

pub use search::{Calibration, Measurements, Request, SkipSearch};
pub use skip_margins::describe_margins;
