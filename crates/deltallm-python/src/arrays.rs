//! Arrays of numpy as numbers.

use deltallm_attn::AttentionShape;
use deltallm_attn::ndarray::{Array3, ArrayView3, ArrayViewMut3};
use half::{bf16, f16};
use numpy::{
    PyArray3, PyArrayMethods, PyReadonlyArray3, PyReadwriteArray3, PyUntypedArray, PyUntypedArrayMethods,
    ToPyArray,
};
use pyo3::prelude::*;

use crate::error::value;

/// Numbers of shape `[tokens, heads, channels]`.
pub(crate) enum Input<'py> {
    F32(PyReadonlyArray3<'py, f32>),
    F16(PyReadonlyArray3<'py, f16>),
    /// bf16 by its bits.
    Bits(PyReadonlyArray3<'py, u16>),
}

impl<'py> Input<'py> {
    pub(crate) fn new(name: &str, array: &Bound<'py, PyAny>) -> PyResult<Self> {
        check_aligned(name, array)?;
        if let Ok(array) = array.extract() {
            return Ok(Self::F32(array));
        }
        if let Ok(array) = array.extract() {
            return Ok(Self::F16(array));
        }
        if let Ok(array) = array.extract() {
            return Ok(Self::Bits(array));
        }
        let expected = "an array of shape [tokens, heads, channels] in float32, float16, or bfloat16 by its bits in uint16";
        let got = match array.cast::<PyUntypedArray>() {
            Ok(array) => format!("one of shape {:?} in {}", array.shape(), array.dtype()),
            Err(_) => array.get_type().to_string(),
        };
        Err(value(format!("{name}: expected {expected}, got {got}")))
    }

    /// Checks what a copy of the array would need memory for: heads, channels, and that every token has numbers of its own.
    fn check(&self, name: &str, heads: usize, channels: usize) -> PyResult<()> {
        let (shape, strides) = match self {
            Self::F32(array) => (array.shape(), array.strides()),
            Self::F16(array) => (array.shape(), array.strides()),
            Self::Bits(array) => (array.shape(), array.strides()),
        };
        if shape[1..] != [heads, channels] {
            return Err(value(format!(
                "{name}: expected an array of shape [tokens, heads, channels] with heads = {heads} and channels = {channels}, got one of shape {shape:?}"
            )));
        }
        if shape[0] > 1 && strides[0] == 0 {
            return Err(value(format!(
                "{name}: expected numbers of its own for each token, got those of one broadcast to {}",
                shape[0]
            )));
        }
        Ok(())
    }

    /// The numbers in f32, where they lie if they are.
    pub(crate) fn numbers(&self) -> Numbers<'_> {
        match self {
            Self::F32(array) => Numbers::Lent(array.as_array()),
            Self::F16(array) => Numbers::Own(array.as_array().mapv(f16::to_f32)),
            Self::Bits(array) => Numbers::Own(array.as_array().mapv(|bits| bf16::from_bits(bits).to_f32())),
        }
    }

    /// A result in the type of this input.
    pub(crate) fn of_this_type(&self, py: Python<'py>, out: Array3<f32>) -> Bound<'py, PyAny> {
        match self {
            Self::F32(_) => PyArray3::from_owned_array(py, out).into_any(),
            Self::F16(_) => out.mapv(f16::from_f32).to_pyarray(py).into_any(),
            Self::Bits(_) => out.mapv(|x| bf16::from_f32(x).to_bits()).to_pyarray(py).into_any(),
        }
    }
}

/// Refuses what numpy can hold and a slice of numbers cannot: addresses and strides that are no multiples of a number's size, as in a field of a
/// packed record.
pub(crate) fn check_aligned(name: &str, array: &Bound<'_, PyAny>) -> PyResult<()> {
    let Ok(array) = array.cast::<PyUntypedArray>() else { return Ok(()) };
    if array.getattr("flags")?.getattr("aligned")?.extract()? {
        return Ok(());
    }
    Err(value(format!("{name}: expected an aligned array, got one that is not; hand over its copy()")))
}

pub(crate) enum Numbers<'a> {
    Lent(ArrayView3<'a, f32>),
    Own(Array3<f32>),
}

impl Numbers<'_> {
    pub(crate) fn view(&self) -> ArrayView3<'_, f32> {
        match self {
            Self::Lent(view) => view.view(),
            Self::Own(array) => array.view(),
        }
    }
}

/// Checks q, k and v before anything is copied.
pub(crate) fn check_shapes([q, k, v]: &[Input<'_>; 3], shape: AttentionShape) -> PyResult<()> {
    q.check("q", shape.heads(), shape.head_dim())?;
    k.check("k", shape.kv_heads(), shape.head_dim())?;
    v.check("v", shape.kv_heads(), shape.value_dim())
}

/// Where a result goes that the caller has made room for.
pub(crate) struct Output<'py>(PyReadwriteArray3<'py, f32>);

impl<'py> Output<'py> {
    pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        let wrong = |_| {
            value("out: expected an array of shape [tokens, heads, channels] in float32 that can be written")
        };
        check_aligned("out", array)?;
        let array = array.cast::<PyArray3<f32>>().map_err(|_| wrong(()))?;
        array.try_readwrite().map(Self).map_err(|error| value(format!("out: {error}")))
    }

    pub(crate) fn view(&mut self) -> ArrayViewMut3<'_, f32> {
        self.0.as_array_mut()
    }
}
