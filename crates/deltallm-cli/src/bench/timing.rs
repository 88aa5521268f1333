//! Order and statistics of repeated measurements.

/// The order in which `count` subjects run in a turn: everyone comes first, and last, equally often.
pub fn rotated(count: usize, turn: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| (i + turn) % count)
}

/// Median and spread of some seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle one; of an even number the mean of the middle two.
    pub median: f64,
    /// Median absolute deviation from the median.
    pub mad: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Of no measurements everything is NaN.
    pub fn of(times: &[f64]) -> Self {
        let median = median(times);
        let deviations: Vec<f64> = times.iter().map(|time| (time - median).abs()).collect();
        Self {
            median,
            mad: self::median(&deviations),
            min: times.iter().copied().fold(f64::NAN, f64::min),
            max: times.iter().copied().fold(f64::NAN, f64::max),
        }
    }
}

/// The middle one; of an even number the mean of the middle two, of none NaN.
pub fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => f64::NAN,
        even if even.is_multiple_of(2) => 0.5 * (times[middle - 1] + times[middle]),
        _ => times[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_runs_once_a_turn_and_begins_once_in_as_many_turns() {
        let turns: Vec<Vec<usize>> = (0..3).map(|turn| rotated(3, turn).collect()).collect();
        assert_eq!(turns, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        assert_eq!(rotated(0, 5).count(), 0);
    }

    #[test]
    fn one_outlier_moves_neither_median_nor_deviation() {
        let summary = Summary::of(&[3.0, 1.0, 100.0, 2.0, 4.0]);
        assert_eq!(summary, Summary { median: 3.0, mad: 1.0, min: 1.0, max: 100.0 });
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert!(Summary::of(&[]).median.is_nan());
    }
}
