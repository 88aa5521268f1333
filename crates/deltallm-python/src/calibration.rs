//! Settings from measurement, for a model that Python runs.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use deltallm_attn::{
    AttentionShape, CalibrationGoal, HeldOut, KernelSpec, Mask,
    calibration::{self, CalibrationError, CalibrationRequest, Score},
};
use deltallm_core::{KvStore, ModelFingerprint, internal::write_file};
use numpy::PyReadonlyArray2;
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arrays::{Input, check_aligned, check_shapes},
    error::{attention, calibration as raised, check_layers, io, value},
    spec::Spec,
    stats::Stats,
    threads,
};

/// Finds the settings of a model: show it what the layers' attention is given (`observe`), then let it try settings (`find`).
/// `deltallm.calibrate` does all of this for a model of transformers.
#[pyclass(module = "deltallm", frozen)]
pub(crate) struct Calibrator {
    shape: AttentionShape,
    inner: Mutex<Option<calibration::Calibrator>>,
}

impl Calibrator {
    /// What `body` answers, without the lock of the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&mut calibration::Calibrator) -> Result<T, CalibrationError> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut calibrator = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let calibrator = calibrator.as_mut().ok_or_else(over)?;
            threads::run(threads::are_many(), || body(calibrator)).map_err(raised)
        })
    }
}

fn over() -> PyErr {
    value("expected a calibrator that has not found its settings yet")
}

#[pymethods]
impl Calibrator {
    /// For a model of so many layers. The goal is `max_kl`, the largest divergence from dense attention in nats, or `zero_fraction`.
    #[new]
    #[pyo3(signature = (heads, kv_heads, head_dim, layers, *, max_kl=None, zero_fraction=None, store="f16", window=64, sinks=4, exact_prompt=None, scale=None, softcap=None, masks=None))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        layers: usize,
        max_kl: Option<f64>,
        zero_fraction: Option<f64>,
        store: &str,
        window: usize,
        sinks: usize,
        exact_prompt: Option<usize>,
        scale: Option<f32>,
        softcap: Option<f32>,
        masks: Option<Vec<String>>,
    ) -> PyResult<Self> {
        let goal = match (max_kl, zero_fraction) {
            (Some(kl), None) => CalibrationGoal::Kl(kl),
            (None, Some(share)) => CalibrationGoal::ZeroFraction(share),
            _ => return Err(value("expected max_kl or zero_fraction, and not both")),
        };
        let store: KvStore = store.parse().map_err(value)?;
        let request = CalibrationRequest::new(goal)
            .store(store)
            .exact_window(window)
            .exact_sinks(sinks)
            .exact_prompt(exact_prompt)
            .scale(scale)
            .softcap(softcap);
        let shape = AttentionShape::new(heads, kv_heads, head_dim).map_err(attention)?;
        check_layers("layers", layers)?;
        let masks = masks.unwrap_or_default();
        let masks =
            masks.iter().map(|mask| mask.parse().map_err(attention)).collect::<PyResult<Vec<Mask>>>()?;
        let calibrator = calibration::Calibrator::new(shape, layers, request).map_err(raised)?.masks(masks);
        Ok(Self { shape, inner: Mutex::new(Some(calibrator)) })
    }

    /// Gives the output projection of a layer, [hidden_size, heads * head_dim], before its first window.
    fn output_projection(
        &self,
        py: Python<'_>,
        layer: usize,
        weights: PyReadonlyArray2<'_, f32>,
    ) -> PyResult<()> {
        check_aligned("weights", weights.as_any())?;
        let weights = weights.as_array();
        self.with(py, |calibrator| calibrator.output_projection(layer, weights))
    }

    /// Shows what a layer's attention is given for one window of text, with dense attention in all layers.
    fn observe(
        &self,
        py: Python<'_>,
        layer: usize,
        q: &Bound<'_, PyAny>,
        k: &Bound<'_, PyAny>,
        v: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let inputs = [Input::new("q", q)?, Input::new("k", k)?, Input::new("v", v)?];
        check_shapes(&inputs, self.shape)?;
        let numbers = inputs.each_ref().map(Input::numbers);
        let [q, k, v] = numbers.each_ref().map(|numbers| numbers.view());
        self.with(py, |calibrator| calibrator.observe(layer, q, k, v))
    }

    /// How often `find` calls its function at most.
    fn runs(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |calibrator| Ok(calibrator.runs()))
    }

    /// Looks for settings. `score` runs the model over held-out text as a Spec says, and returns what that costs beside dense attention: a dict of
    /// tokens, kl, perplexity_dense, perplexity_change, top1_agreement, and layers, a list of the Stats of every layer.
    fn find(&self, py: Python<'_>, score: Py<PyAny>) -> PyResult<Calibrated> {
        let held = || self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let calibrator = py.detach(|| held().take()).ok_or_else(over)?;
        let scored = |spec: &KernelSpec| -> PyResult<Score> {
            Python::attach(|py| {
                let answer = score.bind(py).call1((Spec(spec.clone()),))?;
                let number = |name: &str| answer.get_item(name)?.extract::<f64>();
                let layers: Vec<Bound<'_, Stats>> = answer.get_item("layers")?.extract()?;
                Ok(Score {
                    tokens: answer.get_item("tokens")?.extract()?,
                    perplexity_dense: number("perplexity_dense")?,
                    perplexity_change: number("perplexity_change")?,
                    kl: number("kl")?,
                    top1_agreement: number("top1_agreement")?,
                    layers: layers.iter().map(|stats| stats.get().0.clone()).collect(),
                })
            })
        };
        let kept = calibrator.clone();
        let found = py.detach(|| calibrator.find(scored));
        if found.is_err() {
            // What has been observed is not lost.
            py.detach(|| *held() = Some(kept));
        }
        found.map(|found| Calibrated(Arc::new(found))).map_err(raised)
    }
}

/// Settings that were found, with what they cost on text that was held out.
#[pyclass(module = "deltallm", frozen)]
pub(crate) struct Calibrated(Arc<calibration::Calibrated>);

#[pymethods]
impl Calibrated {
    /// The settings.
    #[getter]
    fn spec(&self) -> Spec {
        Spec(self.0.spec.clone())
    }

    /// What they cost on the held-out text: tokens, kl, perplexity_dense, perplexity_change, top1_agreement, zero_fraction, sparsity,
    /// values_skipped.
    #[getter]
    fn held_out<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let HeldOut {
            tokens,
            zero_fraction,
            sparsity,
            values_skipped,
            perplexity_dense,
            perplexity_change,
            kl,
            top1_agreement,
        } = self.0.held_out;
        let dict = PyDict::new(py);
        dict.set_item("tokens", tokens)?;
        for (name, number) in [
            ("kl", kl),
            ("perplexity_dense", perplexity_dense),
            ("perplexity_change", perplexity_change),
            ("top1_agreement", top1_agreement),
            ("zero_fraction", zero_fraction),
            ("sparsity", sparsity),
            ("values_skipped", values_skipped),
        ] {
            dict.set_item(name, number)?;
        }
        Ok(dict)
    }

    /// Writes a profile, which `Spec.from_profile` reads.
    #[pyo3(signature = (path, model="", text_sha256=""))]
    fn save(&self, path: &str, model: &str, text_sha256: &str) -> PyResult<()> {
        let profile = self.0.profile(ModelFingerprint(0), model, text_sha256).map_err(attention)?;
        let text = serde_json::to_string(&profile).map_err(value)?;
        write_file(Path::new(path), |file| writeln!(file, "{text}")).map_err(|error| io(path, &error))
    }

    fn __repr__(&self) -> String {
        let HeldOut { kl, perplexity_change, zero_fraction, values_skipped, .. } = self.0.held_out;
        format!(
            "Calibrated(kl={kl:.4}, perplexity {:+.2} %, zero_fraction={zero_fraction:.2}, values_skipped={values_skipped:.2})",
            100.0 * perplexity_change
        )
    }
}
