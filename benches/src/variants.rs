//! The table of our kernels that are timed.

use deltallm::{KernelContext, KernelKind, KernelSpec, KvStore, Precision};

use crate::inputs::Inputs;
use crate::measure::Plan;
use crate::ours::{Decode, Make, Prefill};
use crate::subject::{Attention, Phase, Subject};

/// One of our kernels.
pub struct Variant {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// See [`Subject::tolerance`].
    tolerance: Option<f64>,
    /// What it does otherwise than the hybrid kernel of the settings.
    change: fn(KernelSpec) -> KernelSpec,
}

/// Difference to dense f32, relative to its largest output, that the order of f32 sums may make.
pub const F32: Option<f64> = Some(1e-3);
/// The same where keys and values are rounded to f16: on SmolLM2's about 1e-3, on those of Qwen2.5 1.5B, whose keys reach 160, 5e-2.
const F16: Option<f64> = Some(1e-1);
/// The same for products of bf16 numbers.
#[cfg(target_arch = "aarch64")]
const BF16: Option<f64> = Some(5e-2);
/// Not a defect at any size; printed.
const APPROXIMATE: Option<f64> = None;

/// All of them.
pub const OURS: &[Variant] = &[
    Variant { name: "dense-f32", tolerance: F32, change: |spec| stored(dense(spec), KvStore::F32) },
    #[cfg(target_arch = "aarch64")]
    Variant { name: "dense-bf16", tolerance: BF16, change: |spec| bf16(dense(spec)) },
    Variant { name: "dense-int16", tolerance: F16, change: |spec| int16(dense(spec)) },
    Variant { name: "dense-f16-cache", tolerance: F16, change: |spec| stored(dense(spec), KvStore::F16) },
    Variant {
        name: "dense-8bit-cache",
        tolerance: APPROXIMATE,
        change: |spec| stored(dense(spec), KvStore::Int8),
    },
    Variant {
        name: "delta-f32",
        tolerance: APPROXIMATE,
        change: |spec| stored(spec, KvStore::F32).kernel(KernelKind::Delta),
    },
    Variant { name: "hybrid-f32", tolerance: APPROXIMATE, change: |spec| stored(spec, KvStore::F32) },
    #[cfg(target_arch = "aarch64")]
    Variant { name: "hybrid-bf16", tolerance: APPROXIMATE, change: bf16 },
    Variant { name: "hybrid-int16", tolerance: APPROXIMATE, change: int16 },
    Variant { name: "hybrid-f16-cache", tolerance: APPROXIMATE, change: |spec| stored(spec, KvStore::F16) },
    Variant { name: "hybrid-8bit", tolerance: APPROXIMATE, change: |spec| stored(spec, KvStore::Int8) },
    // In layers for which a profile has another store, that one.
    Variant { name: "compact", tolerance: APPROXIMATE, change: |spec| spec.store(KvStore::Compact) },
    Variant {
        name: "compact-int16",
        tolerance: APPROXIMATE,
        change: |spec| spec.store(KvStore::Compact).precision(Precision::Int16),
    },
];

/// The same store in all layers, whatever a profile says.
fn stored(spec: KernelSpec, store: KvStore) -> KernelSpec {
    let layers = spec.layers.iter().map(|layer| layer.store(None)).collect();
    spec.store(store).layers(layers)
}

fn dense(spec: KernelSpec) -> KernelSpec {
    spec.kernel(KernelKind::Dense)
}

/// Products of bf16 numbers, from a cache of them: only Arm has instructions for these.
#[cfg(target_arch = "aarch64")]
fn bf16(spec: KernelSpec) -> KernelSpec {
    stored(spec, KvStore::Bf16).precision(Precision::Bf16)
}

/// Products of 16-bit integers, from the cache that the program has by default.
fn int16(spec: KernelSpec) -> KernelSpec {
    stored(spec, KvStore::F16).precision(Precision::Int16)
}

impl Variant {
    /// The variant, ready for the rounds; for decoding its caches are filled.
    ///
    /// # Errors
    /// A kernel that refuses its settings or its inputs.
    pub fn subject<'a>(
        &self,
        inputs: &'a Inputs,
        context: &KernelContext,
        plan: &Plan,
        spec: &KernelSpec,
    ) -> anyhow::Result<Subject<'a>> {
        let (spec, context) = ((self.change)(spec.clone()), context.clone());
        let make: Make<'a> = Box::new(move |layer| Ok(spec.build(inputs.layers[layer], &context)?));
        let attention: Box<dyn Attention + 'a> = match plan.phase {
            Phase::Prefill => Box::new(Prefill::new(make, inputs)),
            Phase::Decode => Box::new(Decode::new(&make, inputs, plan.decoded().start)?),
        };
        let (name, rounds, tolerance) = (self.name, plan.repetitions, self.tolerance);
        Ok(Subject { name, attention, rounds, tolerance, compared: true })
    }
}
