//! The table of our kernels that are timed.

use std::rc::Rc;

use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, DeltaAttention, DenseAttention, HybridAttention,
    KvStore, Precision,
};

use crate::inputs::Inputs;
use crate::measure::Plan;
use crate::ours::{Decode, Make, Prefill};
use crate::settings::LayerSettings;
use crate::subject::{Attention, Phase, Subject};

type Made = Result<Box<dyn AttentionKernel>, AttentionError>;

/// One of our kernels.
pub struct Variant {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// See [`Subject::tolerance`].
    tolerance: Option<f64>,
    /// Makes the empty kernel of a layer.
    kernel: fn(AttentionOptions, &LayerSettings) -> Made,
}

/// Difference to dense f32, relative to its largest output, that the order of f32 sums may make.
pub const F32: Option<f64> = Some(1e-3);
/// The same where keys and values are rounded to f16: on SmolLM2's about 1e-3.
const F16: Option<f64> = Some(1e-2);
/// The same for products of 16-bit numbers.
const BITS16: Option<f64> = Some(5e-2);
/// Not a defect at any size; printed.
const APPROXIMATE: Option<f64> = None;

/// All of them.
pub const OURS: &[Variant] = &[
    Variant { name: "dense-f32", tolerance: F32, kernel: |options, _| dense(&options) },
    #[cfg(target_arch = "aarch64")]
    Variant { name: "dense-bf16", tolerance: BITS16, kernel: |options, _| dense(&bf16(options)) },
    Variant { name: "dense-int16", tolerance: BITS16, kernel: |options, _| dense(&int16(options)) },
    Variant {
        name: "dense-f16-cache",
        tolerance: F16,
        kernel: |options, _| dense(&with(options, KvStore::F16)),
    },
    Variant {
        name: "dense-8bit-cache",
        tolerance: APPROXIMATE,
        kernel: |options, _| dense(&with(options, KvStore::Int8)),
    },
    Variant { name: "delta-f32", tolerance: APPROXIMATE, kernel: |options, layer| delta(&options, layer) },
    Variant { name: "hybrid-f32", tolerance: APPROXIMATE, kernel: |options, layer| hybrid(&options, layer) },
    #[cfg(target_arch = "aarch64")]
    Variant {
        name: "hybrid-bf16",
        tolerance: APPROXIMATE,
        kernel: |options, layer| hybrid(&bf16(options), layer),
    },
    Variant {
        name: "hybrid-int16",
        tolerance: APPROXIMATE,
        kernel: |options, layer| hybrid(&int16(options), layer),
    },
    Variant {
        name: "hybrid-f16-cache",
        tolerance: APPROXIMATE,
        kernel: |options, layer| hybrid(&with(options, KvStore::F16), layer),
    },
    Variant {
        name: "hybrid-8bit",
        tolerance: APPROXIMATE,
        kernel: |options, layer| hybrid(&with(options, KvStore::Int8), layer),
    },
    Variant {
        name: "compact",
        tolerance: APPROXIMATE,
        kernel: |options, layer| hybrid(&with(options, layer.store.unwrap_or(KvStore::Compact)), layer),
    },
];

/// Products of bf16 numbers, from a cache of them: only Arm has instructions for these.
#[cfg(target_arch = "aarch64")]
fn bf16(options: AttentionOptions) -> AttentionOptions {
    AttentionOptions { precision: Precision::Bf16, ..with(options, KvStore::Bf16) }
}

/// Products of 16-bit integers, from the cache of dense-f32.
fn int16(options: AttentionOptions) -> AttentionOptions {
    AttentionOptions { precision: Precision::Int16, ..options }
}

fn with(options: AttentionOptions, store: KvStore) -> AttentionOptions {
    AttentionOptions { store, ..options }
}

fn dense(options: &AttentionOptions) -> Made {
    Ok(Box::new(DenseAttention::new(options)?))
}

fn delta(options: &AttentionOptions, layer: &LayerSettings) -> Made {
    let config = &layer.config;
    Ok(Box::new(DeltaAttention::new(options, config.thresholds.clone(), config.layer)?))
}

/// Hybrid attention, but dense where the profile says so (in a store that dense attention takes).
fn hybrid(options: &AttentionOptions, layer: &LayerSettings) -> Made {
    match layer.dense {
        true => dense(&with(options.clone(), options.store.dense())),
        false => Ok(Box::new(HybridAttention::new(options, &layer.config)?)),
    }
}

impl Variant {
    /// The variant, ready for the rounds; for decoding its caches are filled.
    ///
    /// # Errors
    /// A kernel that refuses its settings or its inputs.
    pub fn subject<'a>(
        &self,
        inputs: &'a Inputs,
        options: &AttentionOptions,
        plan: &Plan,
        settings: &Rc<[LayerSettings]>,
    ) -> anyhow::Result<Subject<'a>> {
        let (kernel, options, settings) = (self.kernel, options.clone(), Rc::clone(settings));
        let make: Make<'a> = Box::new(move |layer| Ok(kernel(options.clone(), &settings[layer])?));
        let attention: Box<dyn Attention + 'a> = match plan.phase {
            Phase::Prefill => Box::new(Prefill::new(make, inputs)),
            Phase::Decode => Box::new(Decode::new(&make, inputs, plan.decoded().start)?),
        };
        let (name, rounds, tolerance) = (self.name, plan.repetitions, self.tolerance);
        Ok(Subject { name, attention, rounds, tolerance, compared: true })
    }
}
