//! Arrays of ndarray, taken as slices with strides.

use deltallm_core::internal::LAYER_CHANNELS;
use ndarray::{ArrayView3, ArrayViewMut3, CowArray, Ix3};

use crate::{AttentionError, HeadsView, HeadsViewMut};

/// Calls `f` with a [`HeadsView`] of an array of any strides; only arrays without adjacent channels are copied.
pub(crate) fn with_view<T>(
    array: ArrayView3<f32>,
    f: impl FnOnce(HeadsView) -> Result<T, AttentionError>,
) -> Result<T, AttentionError> {
    let (tokens, heads, head_dim) = array.dim();
    // What is copied is bounded by the numbers that are there, and those of a token.
    let shape = |dimension, expected, got| AttentionError::Shape { input: "view", dimension, expected, got };
    if array.strides()[0] == 0 && tokens > 1 && !array.is_empty() {
        return Err(shape("token stride (at least)", 1, 0));
    }
    let channels = heads.saturating_mul(head_dim);
    if channels > LAYER_CHANNELS {
        return Err(shape("channels of all heads (at most)", LAYER_CHANNELS, channels));
    }
    let adjacent = array.strides()[2] == 1 && array.strides().iter().all(|s| *s >= 0);
    let array = if adjacent && array.as_slice_memory_order().is_some() {
        CowArray::<f32, Ix3>::from(array)
    } else {
        CowArray::from(array.as_standard_layout().into_owned())
    };
    // A permuted array keeps its memory; its strides say how to walk it.
    let stride = |axis: usize| array.strides()[axis].unsigned_abs();
    let data = array.as_slice_memory_order().unwrap_or(&[]);
    f(HeadsView::strided(data, [tokens, heads, head_dim], stride(0), stride(1))?)
}

/// Calls `f` with a [`HeadsViewMut`] of an array of any strides.
pub(crate) fn with_view_mut(
    mut array: ArrayViewMut3<f32>,
    f: impl FnOnce(HeadsViewMut) -> Result<(), AttentionError>,
) -> Result<(), AttentionError> {
    let (tokens, heads, head_dim) = array.dim();
    let strides = [array.strides()[0], array.strides()[1], array.strides()[2]];
    let adjacent = strides[2] == 1 && strides.iter().all(|s| *s >= 0);
    if adjacent && let Some(data) = array.as_slice_memory_order_mut() {
        let [token, head, _] = strides.map(isize::unsigned_abs);
        return f(HeadsViewMut::strided(data, [tokens, heads, head_dim], token, head)?);
    }
    let mut copy = array.to_owned().as_standard_layout().into_owned();
    let data = copy.as_slice_mut().unwrap_or(&mut []);
    f(HeadsViewMut::new(data, [tokens, heads, head_dim])?)?;
    array.assign(&copy);
    Ok(())
}
