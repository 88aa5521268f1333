//! Inputs made up for a shape, with a zero fraction and a share of skipped values that are chosen.
//!
//! Keys are stationary: channel `j` of a kv head is a mean-reverting walk `k[t] = a_j k[t-1] + sqrt(1 - a_j^2) u[t]` with `u`
//! uniform of variance one, and `a_j` rising from 0.5 to 0.995 over the channels, as RoPE makes some channels of real
//! keys turn quickly and others slowly. A query is `0.7 (its token's key + such a walk of its own)`: it scores high at its
//! own neighbourhood and about normally, with standard deviation one, elsewhere. Values are uniform and independent.
//!
//! Nothing can be said about accuracy on such inputs; the speed of approximate kernels depends on the two shares only.

use std::rc::Rc;

use deltallm::core::DeltaEncoder;
use deltallm::{AttentionShape, ElementType, KernelContext};
use deltallm_testing::Random;

use super::shapes::NamedShape;
use crate::{Inputs, Layer, settings::SettingsArgs};

/// Steps of the bisection: more digits than a share of a few thousand keys has.
const STEPS: usize = 16;
/// What is asked of synthetic inputs.
#[derive(Debug, Clone)]
pub struct Request {
    /// Head counts.
    pub shape: NamedShape,
    /// Tokens.
    pub tokens: usize,
    /// Layers, all with these inputs, each with its own cache.
    pub layers: usize,
    /// Share of zero delta entries.
    pub zero_fraction: f64,
    /// Share of far values skipped.
    pub values_skipped: f64,
}

/// Inputs, with the threshold and the skip margin that come closest to the shares.
///
/// # Errors
/// For settings that a kernel refuses.
pub fn synthetic(request: &Request, settings: &SettingsArgs) -> anyhow::Result<Inputs> {
    let shape = request.shape.shape;
    let layer = layer(shape, request.tokens);
    let theta = match settings.theta {
        Some(theta) => theta,
        None => theta(&layer, request.zero_fraction)?,
    };
    let values_skipped =
        (request.values_skipped > 0.0 && !settings.has_margin()).then_some(request.values_skipped);
    let (description, spec) = settings.uniform(request.layers, theta, values_skipped);
    let layer = Rc::new(layer);
    Ok(Inputs {
        name: format!("synthetic {}", request.shape.name),
        context: KernelContext::new(shape),
        windows: vec![vec![layer; request.layers]],
        layers: (0..request.layers).collect(),
        spec,
        values_skipped,
        description,
    })
}

/// The same numbers for the same arguments.
pub fn layer(shape: AttentionShape, tokens: usize) -> Layer {
    let mut random = Random::scattered(1);
    // Uniform with mean 0 and variance 1.
    let mut random = move || random.number() * 3_f32.sqrt();
    let (heads, kv_heads, d) = (shape.heads(), shape.kv_heads(), shape.head_dim());
    let pull: Vec<f32> =
        (0..d).map(|j| 1.0 - 0.5 * 0.01_f32.powf(j as f32 / (d - 1).max(1) as f32)).collect();
    let mut step = |walk: &mut [f32]| {
        for (x, j) in walk.iter_mut().zip((0..d).cycle()) {
            *x = pull[j] * *x + (1.0 - pull[j] * pull[j]).sqrt() * random();
        }
    };
    let (mut keys, mut noise, mut values) = (vec![0.0; kv_heads * d], vec![0.0; heads * d], Vec::new());
    // The walks begin at zero; after this many steps they no longer know.
    (0..500).for_each(|_| {
        step(&mut keys);
        step(&mut noise);
    });
    let (mut q, mut k) = (Vec::new(), Vec::new());
    for _ in 0..tokens {
        step(&mut keys);
        step(&mut noise);
        k.extend_from_slice(&keys);
        for (head, noise) in noise.chunks(d).enumerate() {
            let key = &keys[head / shape.group() * d..][..d];
            q.extend(key.iter().zip(noise).map(|(key, noise)| 0.7 * (key + noise)));
        }
    }
    for _ in 0..tokens * kv_heads * d {
        values.push(random());
    }
    Layer { shape, q, k, v: values }
}

/// The threshold at which this share of the keys' delta entries is zero.
fn theta(layer: &Layer, zero_fraction: f64) -> anyhow::Result<f32> {
    let (mut low, mut high) = (0.0, 8.0);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        if zeros(layer, middle)? < zero_fraction {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high)
}

/// Share of zero entries of the delta matrices of all kv heads.
fn zeros(layer: &Layer, theta: f32) -> anyhow::Result<f64> {
    let (kv_heads, d) = (layer.shape.kv_heads(), layer.shape.head_dim());
    let mut sent: u32 = 0;
    for head in 0..kv_heads {
        let mut encoder = DeltaEncoder::new(vec![theta; d], ElementType::F32)?;
        for key in layer.k.chunks(d).skip(head).step_by(kv_heads) {
            sent += encoder.encode(key)?.iter().map(|word| word.count_ones()).sum::<u32>();
        }
    }
    Ok(1.0 - f64::from(sent) / layer.k.len().max(1) as f64)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{measure, measure::Plan, peak::Peak, subject::Phase, variants::OURS};

    #[test]
    fn the_threshold_gives_the_zero_fraction_that_was_asked_for() {
        let layer = layer(AttentionShape::new(4, 2, 64).unwrap(), 1024);
        for wanted in [0.3, 0.6, 0.85] {
            let got = zeros(&layer, theta(&layer, wanted).unwrap()).unwrap();
            assert!((got - wanted).abs() < 0.01, "{wanted}: {got}");
        }
    }

    #[test]
    fn the_margin_gives_the_share_of_skipped_values_that_was_asked_for() {
        let request = Request {
            shape: "4,2,64".parse().unwrap(),
            tokens: 768,
            layers: 1,
            zero_fraction: 0.5,
            values_skipped: 0.6,
        };
        let inputs = synthetic(&request, &SettingsArgs::default()).unwrap();
        for phase in [Phase::Prefill, Phase::Decode] {
            let plan = Plan { phase, n: 700, repetitions: 1, steps: 8 };
            let hybrid = OURS.iter().find(|variant| variant.name == "hybrid-f32").unwrap();
            let spec = inputs.spec_for(phase, plan.n).unwrap();
            let mut subjects = [hybrid.subject(&inputs, &inputs.context, &plan, &spec).unwrap()];
            let peak = Peak::new(deltallm::Isa::best(), 1);
            let results = measure(&mut subjects, &inputs, &plan, &peak, &mut |_| ()).unwrap();
            let got = results.subjects[0].counts.unwrap().sparsity.values_skipped();
            assert!((got - 0.6).abs() < 0.1, "{phase}: {got}");
        }
    }
}
