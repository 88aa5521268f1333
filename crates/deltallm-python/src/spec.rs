//! Settings.

use std::fs;

use deltallm_attn::{AttentionProfile, KernelSpec};
use pyo3::prelude::*;
use serde_json::{Map, Value};

use crate::error::{io, value};

/// Attention settings of all layers of a model, by the names that profiles and the program have: `kernel` ("hybrid", "dense", "delta"),
/// `store` ("f32", "f16", "bf16", "int8", "compact"), `window`, `sinks`, `thresholds`, `skip_margin`, and so on. What is not said has its default:
/// hybrid attention that is safe for a model of which nothing is known.
///
/// >>> Spec(store="compact", window=128)
#[pyclass(module = "deltallm", frozen, eq)]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec(pub(crate) KernelSpec);

impl Spec {
    /// A spec with some fields replaced.
    fn replaced(spec: &KernelSpec, fields: Map<String, Value>) -> PyResult<Self> {
        let mut whole = serde_json::to_value(spec).map_err(value)?;
        if let Some(whole) = whole.as_object_mut() {
            // What is left out where it is written is what these mean by default, but for the store.
            whole.entry("store").or_insert_with(|| Value::from(spec.store.to_string()));
            whole.extend(fields);
        }
        serde_json::from_value(whole).map(Self).map_err(|error| value(format!("spec: {error}")))
    }
}

#[pymethods]
impl Spec {
    #[new]
    #[pyo3(signature = (**fields))]
    fn new(py: Python<'_>, fields: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        let fields = match fields {
            Some(fields) => {
                let text: String = py.import("json")?.call_method1("dumps", (fields,))?.extract()?;
                serde_json::from_str(&text).map_err(value)?
            }
            None => Map::new(),
        };
        Self::replaced(&KernelSpec::default(), fields)
    }

    /// The same with other values of some fields.
    #[pyo3(signature = (**fields))]
    fn replace(&self, py: Python<'_>, fields: Option<Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(fields) = fields else { return Ok(self.clone()) };
        let text: String = py.import("json")?.call_method1("dumps", (fields,))?.extract()?;
        Self::replaced(&self.0, serde_json::from_str(&text).map_err(value)?)
    }

    /// The settings of a profile, a JSON file that `deltallm calibrate` or `Calibrated.save` has written. A profile does not say how keys and values
    /// are cached: `store` does.
    #[staticmethod]
    #[pyo3(signature = (path, store="f16"))]
    fn from_profile(path: &str, store: &str) -> PyResult<Self> {
        let text = fs::read_to_string(path).map_err(|error| io(path, &error))?;
        let profile: AttentionProfile =
            serde_json::from_str(&text).map_err(|error| value(format!("{path}: {error}")))?;
        Ok(Self(profile.spec().clone().store(store.parse().map_err(value)?)))
    }

    /// All fields, as JSON.
    fn to_json(&self) -> PyResult<String> {
        serde_json::to_string(&self.0).map_err(value)
    }

    /// What `to_json` has written.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        serde_json::from_str(text).map(Self).map_err(|error| value(format!("spec: {error}")))
    }

    /// Which attention runs: "hybrid", "dense" or "delta".
    #[getter]
    fn kernel(&self) -> String {
        self.0.kernel.to_string()
    }

    /// How keys and values are cached.
    #[getter]
    fn store(&self) -> String {
        self.0.store.to_string()
    }

    fn __reduce__(slf: Bound<'_, Self>) -> PyResult<(Bound<'_, PyAny>, (String,))> {
        Ok((slf.getattr("from_json")?, (slf.get().to_json()?,)))
    }

    fn __repr__(&self) -> PyResult<String> {
        let Self(KernelSpec { kernel, store, exact_window, exact_sinks, .. }) = self;
        Ok(format!(
            "Spec(kernel='{kernel}', store='{store}', window={exact_window}, sinks={exact_sinks}, ...)"
        ))
    }
}
