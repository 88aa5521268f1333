//! Dense attention on keys and values of 4 bits, to compare bytes with: the rounding of llama.cpp's `q4_0` caches.

use deltallm::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper};
use half::f16;

/// Channels that share a scale.
const GROUP: usize = 32;

/// Bytes of a key and a value of one token and kv head: half a byte for a channel, and an f16 scale for each group.
pub(super) fn bytes(head_dim: usize) -> usize {
    2 * (head_dim.div_ceil(2) + 2 * head_dim.div_ceil(GROUP))
}

/// Rounds keys and values on their way into an exact kernel.
pub(super) struct FourBits(pub(super) Box<dyn AttentionKernel>);

impl KernelWrapper for FourBits {
    type Inner = Box<dyn AttentionKernel>;

    fn inner(&self) -> &Self::Inner {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut self.0
    }

    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let (keys, values) = (rounded(k), rounded(v));
        let shape = [k.tokens(), k.heads(), k.head_dim()];
        self.0.forward_heads(q, HeadsView::new(&keys, shape)?, HeadsView::new(&values, shape)?, out)
    }
}

fn rounded(rows: HeadsView) -> Vec<f32> {
    let mut all = Vec::with_capacity(rows.tokens() * rows.heads() * rows.head_dim());
    for token in 0..rows.tokens() {
        (0..rows.heads()).for_each(|head| all.extend_from_slice(rows.row(token, head)));
    }
    all.chunks_mut(rows.head_dim().max(1)).flat_map(|row| row.chunks_mut(GROUP)).for_each(round);
    all
}

/// Sixteen codes from -8 to 7; the number farthest from zero becomes -8.
fn round(group: &mut [f32]) {
    let farthest = group.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    let step = farthest / -8.0;
    let stored = f16::from_f32(step).to_f32();
    for x in group {
        let code = if step == 0.0 { 0.0 } else { (*x / step + 8.5).floor().clamp(0.0, 15.0) - 8.0 };
        *x = code * stored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_farthest_number_and_zero_are_kept_and_others_are_half_a_step_off() {
        let mut group: Vec<f32> = (0..32).map(|i| (i as f32 - 20.0) / 4.0).collect();
        let exact = group.clone();
        round(&mut group);
        let step = 5.0 / 8.0;
        assert_eq!((group[0], group[20]), (-5.0, 0.0));
        assert!(group.iter().zip(&exact).all(|(got, expected)| (got - expected).abs() <= step));
        assert!(
            group
                .iter()
                .zip(&exact)
                .filter(|(got, expected)| (*got - *expected).abs() > step / 2.0 + 1e-6)
                .count()
                <= 1
        );
    }

    #[test]
    fn zeros_stay_zeros() {
        let mut group = [0.0; 5];
        round(&mut group);
        assert_eq!(group, [0.0; 5]);
    }

    #[test]
    fn four_and_a_half_bits_a_channel() {
        assert_eq!([bytes(64), bytes(128), bytes(80)], [72, 144, 92]);
    }
}
