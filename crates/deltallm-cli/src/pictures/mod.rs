//! Pictures of the documentation that `report` does not draw, made by the hidden command `deltallm pictures`.

mod curves;
mod lengths;
mod method;
mod panel;

pub use curves::{CurveFiles, curves};
pub use lengths::lengths;
pub use method::{MethodChoice, method};
