//! Memory that an array of any shape is made from.

use ndarray::{ArrayViewMut, Dimension};

/// Memory for an array that is made anew in every call.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// The memory as an array of that shape. It contains what an array of the same size was given last, or something
    /// without meaning.
    pub(crate) fn array<D: Dimension>(&mut self, shape: D) -> ArrayViewMut<'_, f32, D> {
        let len = shape.size();
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        match ArrayViewMut::from_shape(shape, &mut self.0[..len]) {
            Ok(array) => array,
            Err(_) => unreachable!("as many elements as the shape has"),
        }
    }
}
