//! Other engines, on the same inputs, with the same number of threads.

pub mod candle;
pub mod candle_model;
pub mod torch;
