//! candle: its CPU flash attention, and its path of matrix products and a softmax.
//!
//! Both are given what they like best: the cache is one tensor in the layout that the path works on, nothing is appended to
//! it (so decoding costs them no copy), and bringing the result into our layout is not timed.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use candle_core::{D, Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::ops::softmax_last_dim;

use crate::subject::{Attention, Phase, Place};
use crate::{Inputs, Layer};

/// Bytes of a score matrix that are too many: two of them exist at once.
const MOST_SCORE_BYTES: usize = 2 << 30;

/// Which of candle's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// [`flash_attn`] with a causal mask.
    Flash,
    /// What candle's Llama does on a CPU: q kᵀ, mask, softmax, p v. Faster than there in three ways: kv heads are not copied
    /// for every query head (queries of a group stand below each other in one product instead), the scale goes to the
    /// queries, and the softmax is the fused one.
    MatMul,
}

/// A path of candle's in one phase.
pub struct Candle<'a> {
    path: Path,
    phase: Phase,
    inputs: &'a Inputs,
    /// What is decoded: every layer's cache has its own memory. A prefill makes its tensors before every call.
    caches: HashMap<Place, Tensors>,
    mask: Option<Tensor>,
}

/// q, k and v of one layer, all tokens, as the path wants them: `[1, tokens, heads, head_dim]` or `[heads, tokens, head_dim]`.
#[derive(Clone)]
struct Tensors {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Path {
    /// Why the path cannot take these inputs, or a prefill of `n` tokens, if it cannot.
    pub fn refuses(self, inputs: &Inputs, phase: Phase, n: usize) -> Option<String> {
        if !inputs.is_causal() {
            return Some("candle is left out: not all layers of the model are causal".to_owned());
        }
        let bytes =
            inputs.shape().heads().saturating_mul(n).saturating_mul(n).saturating_mul(size_of::<f32>());
        let refused = self == Self::MatMul && phase == Phase::Prefill && bytes > MOST_SCORE_BYTES;
        refused.then(|| {
            format!(
                "candle-matmul is left out at n = {n}: its score matrix would take {:.1} GB",
                bytes as f64 / 1e9
            )
        })
    }
}

impl<'a> Candle<'a> {
    /// Prepares what is not timed.
    ///
    /// # Errors
    /// candle's.
    pub fn new(path: Path, phase: Phase, inputs: &'a Inputs, n: usize) -> anyhow::Result<Self> {
        let mut candle = Self { path, phase, inputs, caches: HashMap::new(), mask: None };
        if phase == Phase::Decode {
            for window in 0..inputs.windows.len() {
                for layer in 0..inputs.layers.len() {
                    let place = Place { window, layer };
                    candle.caches.insert(place, tensors(path, &inputs.windows[window][layer], n)?);
                }
            }
        } else if path == Path::MatMul {
            let mask = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 });
            candle.mask = Some(Tensor::from_iter(mask, &Device::Cpu)?.reshape((n, n))?);
        }
        Ok(candle)
    }

    /// `[1, heads, tokens, head_dim]`.
    fn flash(&self, Tensors { q, k, v }: &Tensors, first: usize) -> candle_core::Result<Tensor> {
        let mask = AttnMask::causal_with_offset(first);
        flash_attn::<f32>(q, k, v, self.scale() as f32, mask, None, None)
    }

    /// `[heads, tokens, head_dim]`.
    fn matmul(&self, Tensors { q, k, v }: &Tensors) -> candle_core::Result<Tensor> {
        let (heads, tokens, head_dim) = q.dims3()?;
        let (kv_heads, cached, _) = k.dims3()?;
        let grouped = (kv_heads, heads / kv_heads * tokens);
        let q = (q * self.scale())?.reshape((grouped.0, grouped.1, head_dim))?;
        let mut scores = q.matmul(&k.transpose(1, 2)?)?;
        if let Some(mask) = &self.mask {
            scores = scores.reshape((heads, tokens, cached))?.broadcast_add(mask)?;
        }
        let weights = softmax_last_dim(&scores)?.reshape((grouped.0, grouped.1, cached))?;
        weights.matmul(v)?.reshape((heads, tokens, head_dim))
    }

    fn scale(&self) -> f64 {
        1.0 / (self.inputs.shape().head_dim() as f64).sqrt()
    }
}

impl Attention for Candle<'_> {
    fn attend(&mut self, place: Place, tokens: Range<usize>, out: &mut [f32]) -> anyhow::Result<f64> {
        let all = match self.phase {
            Phase::Decode => self.caches[&place].clone(),
            Phase::Prefill => {
                tensors(self.path, &self.inputs.windows[place.window][place.layer], tokens.end)?
            }
        };
        // The axis of tokens is the last but two, or but one.
        let axis = if self.path == Path::Flash { D::Minus(3) } else { D::Minus2 };
        let q = all.q.narrow(axis, tokens.start, tokens.len())?.contiguous()?;
        let (k, v) = (all.k.narrow(axis, 0, tokens.end)?, all.v.narrow(axis, 0, tokens.end)?);
        let part = Tensors { q, k, v };
        let start = Instant::now();
        let result = match self.path {
            Path::Flash => self.flash(&part, tokens.start)?.squeeze(0)?,
            Path::MatMul => self.matmul(&part)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        out.copy_from_slice(&result.transpose(0, 1)?.flatten_all()?.to_vec1()?);
        Ok(seconds)
    }

    /// Nothing is ever appended.
    fn rewind(&mut self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }
}

fn tensors(path: Path, layer: &Layer, n: usize) -> candle_core::Result<Tensors> {
    let tensor = |data: &[f32], heads: usize| {
        let head_dim = layer.shape.head_dim();
        let tensor = Tensor::from_slice(&data[..n * heads * head_dim], (n, heads, head_dim), &Device::Cpu)?;
        match path {
            Path::Flash => tensor.unsqueeze(0),
            Path::MatMul => tensor.transpose(0, 1)?.contiguous(),
        }
    };
    let (heads, kv_heads) = (layer.shape.heads(), layer.shape.kv_heads());
    Ok(Tensors {
        q: tensor(&layer.q, heads)?,
        k: tensor(&layer.k, kv_heads)?,
        v: tensor(&layer.v, kv_heads)?,
    })
}
