//! One layer's attention.

use std::sync::{Arc, Mutex, MutexGuard};

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionShape, KernelContext, KernelSpec, Mask, MemoryBudget,
    ThresholdPolicy, ndarray::Array3,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arrays::{Input, Output, check_shapes},
    error::{attention, check_layers, value},
    spec::Spec,
    stats::Stats,
    threads,
};

/// The attention of one layer together with its key-value cache.
///
/// Shapes are [tokens, heads, channels] for q, [tokens, kv_heads, channels] for k and v. Keys and queries come after rotary embedding.
///
/// >>> kernel = Kernel(heads=4, kv_heads=2, head_dim=8)
/// >>> out = kernel.forward(q, k, v)
#[pyclass(module = "deltallm", frozen)]
pub(crate) struct Kernel {
    shape: AttentionShape,
    /// Whether it shares its work among threads.
    parallel: bool,
    kernel: Mutex<Box<dyn AttentionKernel>>,
}

impl Kernel {
    /// The kernel inside. Nobody who holds it waits for Python.
    pub(crate) fn lock(&self) -> PyResult<MutexGuard<'_, Box<dyn AttentionKernel>>> {
        let panicked =
            |_| value("expected a kernel that never panicked, got one that did in an earlier call");
        self.kernel.lock().map_err(panicked)
    }

    /// What `body` answers, without the lock of the interpreter.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        body: impl FnOnce(&mut dyn AttentionKernel) -> Result<T, AttentionError> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut kernel = self.lock()?;
            body(&mut **kernel).map_err(attention)
        })
    }
}

#[pymethods]
impl Kernel {
    #[new]
    #[pyo3(signature = (heads, kv_heads, head_dim, spec=None, *, layer=0, value_dim=None, mask="causal", sink_logits=None, scale=None, softcap=None, exact_rewind=0, budget_bytes=None))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        spec: Option<&Bound<'_, Spec>>,
        layer: usize,
        value_dim: Option<usize>,
        mask: &str,
        sink_logits: Option<Vec<f32>>,
        scale: Option<f32>,
        softcap: Option<f32>,
        exact_rewind: usize,
        budget_bytes: Option<usize>,
    ) -> PyResult<Self> {
        let shape = AttentionShape::new(heads, kv_heads, head_dim)
            .and_then(|shape| shape.with_value_dim(value_dim.unwrap_or(head_dim)))
            .map_err(attention)?;
        check_layers("layer", layer)?;
        let mask: Mask = mask.parse().map_err(attention)?;
        let mut spec = spec.map_or_else(KernelSpec::default, |spec| spec.get().0.clone());
        spec.scale = scale.or(spec.scale);
        spec.softcap = softcap.or(spec.softcap);
        let of_thresholds = match &spec.thresholds {
            ThresholdPolicy::Profile(profile) => profile.thresholds().len() / (kv_heads * head_dim).max(1),
            _ => 0,
        };
        let layers = spec.layers.len().max(of_thresholds).max(layer.saturating_add(1));
        let parallel = threads::are_many();
        let mut context = KernelContext::new(shape)
            .masks(vec![mask; layers])
            .exact_rewind(exact_rewind)
            .budget(budget_bytes.map_or_else(MemoryBudget::unlimited, MemoryBudget::new))
            .parallel(parallel);
        if let Some(logits) = sink_logits {
            context = context.sink_logits(vec![Arc::from(logits); layers]);
        }
        spec.validate(shape, layers).map_err(value)?;
        let kernel = spec.build(layer, &context).map_err(attention)?;
        Ok(Self { shape, parallel, kernel: Mutex::new(kernel) })
    }

    /// Appends k and v to the cache and attends q to it: [tokens, heads, value_dim], in the type of q, or in `out`.
    ///
    /// q may have fewer tokens than k: its queries are then those of the last ones.
    #[pyo3(signature = (q, k, v, out=None))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        q: &Bound<'py, PyAny>,
        k: &Bound<'py, PyAny>,
        v: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let inputs = [Input::new("q", q)?, Input::new("k", k)?, Input::new("v", v)?];
        check_shapes(&inputs, self.shape)?;
        let numbers = inputs.each_ref().map(Input::numbers);
        let [q, k, v] = numbers.each_ref().map(|numbers| numbers.view());
        let attend =
            |out| self.with(py, |kernel| threads::run(self.parallel, || kernel.forward(q, k, v, out)));
        if let Some(given) = out {
            let mut out = Output::new(given)?;
            attend(out.view())?;
            return Ok(given.clone());
        }
        let mut out = Array3::zeros((q.dim().0, self.shape.heads(), self.shape.value_dim()));
        attend(out.view_mut())?;
        Ok(inputs[0].of_this_type(py, out))
    }

    /// Announces that the next tokens are one prompt, however many calls bring them.
    fn begin_prompt(&self, py: Python<'_>, tokens: usize) -> PyResult<()> {
        self.with(py, |kernel| {
            kernel.begin_prompt(tokens);
            Ok(())
        })
    }

    /// Forgets every token from `length` on.
    fn truncate(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        self.with(py, |kernel| kernel.truncate(length))
    }

    /// A kernel with the same tokens, that goes its own way from here; both share what is cached until one of them changes it.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let fork = self.with(py, |kernel| Ok(kernel.fork()))?;
        let kernel = fork.ok_or_else(|| value("expected a kernel that can be forked"))?;
        Ok(Self { shape: self.shape, parallel: self.parallel, kernel: Mutex::new(kernel) })
    }

    /// Holds the cache in the next narrower store; the bytes given back.
    fn narrow(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |kernel| kernel.narrow())
    }

    /// What was saved so far.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        self.with(py, |kernel| Ok(Stats(kernel.stats())))
    }

    /// Bytes of the cache: keys, values, window (the exact ones), bookkeeping, total.
    fn footprint<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let bytes = self.with(py, |kernel| Ok(kernel.footprint()))?;
        let dict = PyDict::new(py);
        dict.set_item("keys", bytes.keys)?;
        dict.set_item("values", bytes.values)?;
        dict.set_item("window", bytes.window)?;
        dict.set_item("bookkeeping", bytes.bookkeeping)?;
        dict.set_item("total", bytes.total())?;
        Ok(dict)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |kernel| Ok(kernel.len()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (shape, tokens) = (self.shape, self.__len__(py)?);
        let (heads, kv_heads, head_dim) = (shape.heads(), shape.kv_heads(), shape.head_dim());
        Ok(format!("Kernel(heads={heads}, kv_heads={kv_heads}, head_dim={head_dim}, {tokens} tokens)"))
    }
}
