//! What each key channel would transmit, threshold by threshold.

use deltallm_core::internal::LAYER_CHANNELS;
use ndarray::ArrayView3;

use crate::AttentionError;

/// Thresholds tried: powers of `2^(1/4)` from `2^-7` to `2^5`, in the units of the keys.
const STEPS: usize = 49;
const STEPS_PER_OCTAVE: f32 = 4.0;
const SMALLEST_EXPONENT: f32 = -7.0;

/// Entries that delta coding (`docs/method.md`, equation 1) transmits in every key channel of a layer, for a grid of
/// thresholds.
///
/// ```
/// use deltallm_attn::calibration::RateCurves;
/// use ndarray::Array3;
///
/// let mut curves = RateCurves::new();
/// // One kv head, two channels: the first rises by 0.1 a token, the second rests.
/// curves.add(Array3::from_shape_fn((100, 1, 2), |(t, _, j)| if j == 0 { 0.1 * t as f32 } else { 1.0 }).view())?;
/// assert_eq!((curves.tokens(), curves.channels()), (100, 2));
/// assert_eq!(curves.sent(0, 0.01), 100.0); // every key moves by more
/// assert!(curves.sent(0, 1.0) < 15.0);
/// assert_eq!(curves.sent(1, 1.0), 1.0); // the first key is sent whole
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct RateCurves {
    tokens: usize,
    /// Entries sent at every threshold of the grid, `[kv_heads * head_dim]`; empty before the first text.
    sent: Vec<[u32; STEPS]>,
}

impl RateCurves {
    /// The largest threshold of the grid: anything above counts as this one.
    pub const LARGEST: f32 = 32.0;

    /// Curves of a layer whose keys are yet to come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the keys of one text, `[tokens, kv_heads, head_dim]`, coded from its beginning. The first text says how many channels
    /// the layer has; channels that a later text has more are left out.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for more channels than a layer can have.
    pub fn add(&mut self, k: ArrayView3<f32>) -> Result<(), AttentionError> {
        let thresholds: [f32; STEPS] =
            std::array::from_fn(|i| (SMALLEST_EXPONENT + i as f32 / STEPS_PER_OCTAVE).exp2());
        let (tokens, kv_heads, head_dim) = k.dim();
        let (expected, got) = (LAYER_CHANNELS, kv_heads.saturating_mul(head_dim));
        if got > expected {
            return Err(AttentionError::Shape { input: "k", dimension: "channels (at most)", expected, got });
        }
        self.tokens += tokens;
        if self.sent.is_empty() && tokens > 0 {
            self.sent.resize(got, [0; STEPS]);
        }
        let channels = (0..kv_heads).flat_map(|head| (0..head_dim).map(move |channel| (head, channel)));
        for ((head, channel), sent) in channels.zip(&mut self.sent) {
            // The first key is sent whole, so every threshold starts from it.
            let mut references = None;
            for token in 0..tokens {
                let key = k[[token, head, channel]];
                let references = references.get_or_insert_with(|| {
                    sent.iter_mut().for_each(|sent| *sent += 1);
                    [key; STEPS]
                });
                for ((sent, reference), threshold) in sent.iter_mut().zip(references).zip(&thresholds) {
                    let moved = (key - *reference).abs() > *threshold;
                    *reference = if moved { key } else { *reference };
                    *sent += u32::from(moved);
                }
            }
        }
        Ok(())
    }

    /// Tokens added.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Channels of the layer; none before the first text.
    pub fn channels(&self) -> usize {
        self.sent.len()
    }

    /// Entries that channel `channel` transmits with a threshold, interpolated between those of the grid; none for a channel
    /// that the layer does not have.
    pub fn sent(&self, channel: usize, threshold: f32) -> f64 {
        let place = (threshold.log2() - SMALLEST_EXPONENT) * STEPS_PER_OCTAVE;
        // NaN for a NaN or negative threshold, -inf for zero: both count as the first grid point.
        let place = if place > 0.0 { place.min((STEPS - 1) as f32) } else { 0.0 };
        let (low, part) = (place as usize, f64::from(place.fract()));
        let Some(curve) = self.sent.get(channel) else { return 0.0 };
        let sent = |step: usize| f64::from(curve[step.min(STEPS - 1)]);
        sent(low) + (sent(low + 1) - sent(low)) * part
    }
}
