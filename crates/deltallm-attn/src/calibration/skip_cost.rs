//! Margins of value skipping layer by layer: what skipping costs in each, and where a little more would cost the same in all.

use super::digits::four_digits;
use crate::SkipMargin;

/// Margins at which a layer is tried, nats.
pub(super) const PROBES: [f64; 2] = [2.0, 4.0];
/// Margins that a layer can get.
const MARGINS: [f64; 2] = [1.5, 7.0];
/// What a nat of margin can divide the cost by, as logarithms: what the two probes say, within reason.
const DECAYS: [f64; 2] = [0.5, 3.0];

/// What one layer's skipping does while all others are exact, at each of [`PROBES`].
#[derive(Debug, Clone, Copy)]
pub(super) struct SkipCost {
    /// Divergence from dense attention, nats.
    pub(super) kl: [f64; 2],
    /// Share of far values skipped.
    pub(super) skipped: [f64; 2],
}

/// The margin of so many nats for a query that sees `context` keys; it grows with the length as [`SkipMargin::Length`] does.
pub(super) fn at_context(nats: f64, context: usize) -> SkipMargin {
    let nats = nats as f32;
    let slack = (context as f32).ln() - nats;
    SkipMargin::Length { slack: four_digits(slack), least: four_digits(nats.min(SkipMargin::LEAST)) }
}

impl SkipCost {
    /// The divergence falls by this factor with every nat of margin, as a logarithm.
    fn decay(&self) -> f64 {
        let decay = (self.kl[0] / self.kl[1]).ln() / (PROBES[1] - PROBES[0]);
        if decay.is_nan() { DECAYS[0] } else { decay.clamp(DECAYS[0], DECAYS[1]) }
    }

    /// What a further share of skipped values costs at a margin, nats per share, as a logarithm; infinite where nothing is skipped.
    fn log_rate(&self, margin: f64) -> f64 {
        let skipped_per_nat = (self.skipped[0] - self.skipped[1]).max(0.0) / (PROBES[1] - PROBES[0]);
        let kl = self.kl[0].max(f64::MIN_POSITIVE).ln() - self.decay() * (margin - PROBES[0]);
        self.decay().ln() + kl - skipped_per_nat.ln()
    }

    /// The margin at which the rate is this.
    pub(super) fn margin(&self, log_rate: f64) -> f64 {
        let [least, most] = MARGINS;
        (PROBES[0] + (self.log_rate(PROBES[0]) - log_rate) / self.decay()).clamp(least, most)
    }

    /// The rates at the ends of what a layer can get: at the largest margin, and at the smallest.
    pub(super) fn log_rates(&self) -> [f64; 2] {
        let [least, most] = MARGINS;
        [self.log_rate(most), self.log_rate(least)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: SkipCost = SkipCost { kl: [1e-4, 1e-5], skipped: [0.8, 0.7] };

    #[test]
    fn what_costs_more_gets_a_larger_margin() {
        let dear = SkipCost { kl: [1e-3, 1e-4], ..CHEAP };
        let little_to_skip = SkipCost { skipped: [0.21, 0.2], ..CHEAP };
        let rate = CHEAP.log_rate(3.0);
        assert!((CHEAP.margin(rate) - 3.0).abs() < 1e-9);
        // Ten times the cost, which a margin of two nats more divides by ten.
        assert!((dear.margin(rate) - 5.0).abs() < 1e-9);
        assert!((little_to_skip.margin(rate) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn layers_without_anything_to_skip_keep_all() {
        for nothing in
            [SkipCost { kl: [0.0; 2], skipped: [0.0; 2] }, SkipCost { kl: [1e-4, 1e-5], skipped: [0.3; 2] }]
        {
            assert_eq!(nothing.margin(CHEAP.log_rate(3.0)), MARGINS[1], "{nothing:?}");
        }
        let free = SkipCost { kl: [0.0; 2], ..CHEAP };
        assert_eq!(free.margin(CHEAP.log_rate(3.0)), MARGINS[0]);
    }

    #[test]
    fn margins_hold_at_the_context_and_grow_with_it() {
        for nats in [2.0, 4.5] {
            let margin = at_context(nats, 1024);
            assert!((f64::from(margin.nats(1024, 32)) - nats).abs() < 1e-3);
            assert!(margin.nats(4096, 32) > margin.nats(1024, 32));
            assert_eq!(margin.nats(2, 32), SkipMargin::LEAST.min(nats as f32));
        }
    }
}
