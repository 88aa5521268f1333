//! What pictures are drawn with: a canvas that becomes a PNG, axes, and legends.

mod axes;
mod canvas;

pub(crate) use axes::{Axis, Panel, legend, legend_between, step};
pub use canvas::PICTURE_SIZE;
pub(crate) use canvas::{
    Align, Canvas, Dash, LINE, MARGIN, Marker, Place, SeriesStyle, TEXT, between, palette, png, png_of,
    text_width,
};
