//! Pictures of the documentation that `report` does not draw, made by the program `pictures`.

mod curves;
mod method;

pub use curves::{CurveFiles, curves};
pub use method::{MethodChoice, method};
