//! Our kernels, run as subjects of the measurement.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use deltallm::core::HeadSparsity;
use deltallm::{AttentionKernel, HeadsViewMut};

use crate::Inputs;
use crate::subject::{Attention, Counts, Place};

/// Makes the empty kernel of a layer.
pub type Make<'a> = Box<dyn Fn(usize) -> anyhow::Result<Box<dyn AttentionKernel>> + 'a>;

/// All tokens at once into a new kernel. Making the kernel is not timed; filling its cache is.
pub struct Prefill<'a> {
    make: Make<'a>,
    inputs: &'a Inputs,
    counts: HashMap<Place, Counts>,
}

impl<'a> Prefill<'a> {
    /// Nothing runs yet.
    pub fn new(make: Make<'a>, inputs: &'a Inputs) -> Self {
        Self { make, inputs, counts: HashMap::new() }
    }
}

impl Attention for Prefill<'_> {
    fn attend(&mut self, place: Place, tokens: Range<usize>, out: &mut [f32]) -> anyhow::Result<f64> {
        let mut kernel = (self.make)(place.layer)?;
        let seconds = forward(&mut *kernel, self.inputs, place, tokens, out)?;
        self.counts.entry(place).or_insert_with(|| Counts {
            sparsity: kernel.stats().total(),
            bytes_per_token: kernel.footprint().total() as f64 / kernel.len() as f64,
        });
        Ok(seconds)
    }

    /// Every call starts from nothing anyway.
    fn rewind(&mut self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }

    fn counts(&self) -> Option<Counts> {
        Some(sum(self.counts.values().copied(), self.inputs.windows.len()))
    }
}

/// Kernels that hold the first tokens of every place already.
pub struct Decode<'a> {
    inputs: &'a Inputs,
    kernels: HashMap<Place, Filled>,
}

struct Filled {
    kernel: Box<dyn AttentionKernel>,
    /// Counts of the filling, which are not those of decoding.
    before: HeadSparsity,
}

impl<'a> Decode<'a> {
    /// Fills the caches with the first `tokens` tokens.
    ///
    /// # Errors
    /// A failing kernel.
    pub fn new(make: &Make, inputs: &'a Inputs, tokens: usize) -> anyhow::Result<Self> {
        let mut kernels = HashMap::new();
        let mut out = vec![0.0; tokens * inputs.shape().heads() * inputs.shape().head_dim()];
        for window in 0..inputs.windows.len() {
            for layer in 0..inputs.layers.len() {
                let (place, mut kernel) = (Place { window, layer }, make(layer)?);
                if tokens > 0 {
                    forward(&mut *kernel, inputs, place, 0..tokens, &mut out)?;
                }
                let before = kernel.stats().total();
                kernels.insert(place, Filled { kernel, before });
            }
        }
        Ok(Self { inputs, kernels })
    }
}

impl Attention for Decode<'_> {
    fn attend(&mut self, place: Place, tokens: Range<usize>, out: &mut [f32]) -> anyhow::Result<f64> {
        let filled = self.kernels.get_mut(&place).expect("there is a cache for every place");
        forward(&mut *filled.kernel, self.inputs, place, tokens, out)
    }

    fn rewind(&mut self, tokens: usize) -> anyhow::Result<()> {
        for filled in self.kernels.values_mut() {
            filled.kernel.truncate(tokens.min(filled.kernel.len()))?;
        }
        Ok(())
    }

    fn counts(&self) -> Option<Counts> {
        let places = self.kernels.values().map(|Filled { kernel, before }| {
            let after = kernel.stats().total();
            let sparsity = HeadSparsity {
                pairs: after.pairs - before.pairs,
                exact_pairs: after.exact_pairs - before.exact_pairs,
                skipped_values: after.skipped_values - before.skipped_values,
                ..after
            };
            Counts { sparsity, bytes_per_token: kernel.footprint().total() as f64 / kernel.len() as f64 }
        });
        Some(sum(places, self.inputs.windows.len()))
    }
}

fn forward(
    kernel: &mut dyn AttentionKernel,
    inputs: &Inputs,
    place: Place,
    tokens: Range<usize>,
    out: &mut [f32],
) -> anyhow::Result<f64> {
    let layer = &inputs.windows[place.window][place.layer];
    let (q, k, v) = (layer.q(tokens.clone()), layer.k(tokens.clone()), layer.v(tokens.clone()));
    let out = HeadsViewMut::new(out, [tokens.len(), inputs.shape().heads(), inputs.shape().head_dim()])?;
    let start = Instant::now();
    kernel.forward_heads(q, k, v, out)?;
    Ok(start.elapsed().as_secs_f64())
}

fn sum(places: impl Iterator<Item = Counts>, windows: usize) -> Counts {
    places.fold(Counts::default(), |mut sum, counts| {
        sum.sparsity += counts.sparsity;
        sum.bytes_per_token += counts.bytes_per_token / windows as f64;
        sum
    })
}
