//! The result over some keys, and how two of them become one.

/// Partial result over some keys of one kv head: `[group]` maxima, `[group]` sums of weights, `[group, channels]` weighted
/// sums of values.
pub(super) struct Partial<'a> {
    pub(super) max: &'a mut [f32],
    pub(super) total: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

/// Numbers of a [`Partial`].
pub(super) fn partial_size(group: usize, channels: usize) -> usize {
    group * (2 + channels)
}

impl<'a> Partial<'a> {
    pub(super) fn new(memory: &'a mut [f32], group: usize) -> Self {
        let (max, rest) = memory.split_at_mut(group);
        let (total, sums) = rest.split_at_mut(group);
        Self { max, total, sums }
    }

    /// Nothing seen yet.
    pub(super) fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.sums.fill(0.0);
    }

    /// Adds the partial result over other keys.
    pub(super) fn merge(&mut self, other: &Partial) {
        let channels = self.sums.len() / self.max.len();
        for head in 0..self.max.len() {
            let max = self.max[head].max(other.max[head]);
            // A finite reference where nothing has been seen: -inf - (-inf) would be NaN.
            let factor = |x: f32| (x - max.max(f32::MIN)).exp2();
            let (own, others) = (factor(self.max[head]), factor(other.max[head]));
            self.max[head] = max;
            self.total[head] = self.total[head] * own + other.total[head] * others;
            let range = head * channels..(head + 1) * channels;
            for (sum, more) in self.sums[range.clone()].iter_mut().zip(&other.sums[range]) {
                *sum = *sum * own + more * others;
            }
        }
    }
}
