//! Ranges of tokens.

use std::ops::Range;

/// From the first token of all these ranges to the last.
pub(crate) fn union(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let filled = ranges.filter(|range| !range.is_empty());
    filled.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// What of `range` is among `tokens`; an empty range at the nearer end of `tokens` for nothing.
pub(crate) fn within(range: &Range<usize>, tokens: &Range<usize>) -> Range<usize> {
    let start = range.start.clamp(tokens.start, tokens.end);
    start..range.end.clamp(start, tokens.end)
}

/// Cuts `range` at the multiples of `size`.
pub(crate) fn multiples(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let numbers = range.start / size..range.end.div_ceil(size);
    numbers
        .map(move |number| range.start.max(number * size)..range.end.min((number + 1) * size))
        .filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_at_multiples() {
        assert_eq!(multiples(3..11, 4).collect::<Vec<_>>(), [3..4, 4..8, 8..11]);
        assert_eq!(multiples(5..5, 4).count(), 0);
    }

    #[test]
    fn what_is_not_among_the_tokens_is_an_empty_range_at_their_end() {
        assert_eq!(
            [0..5, 12..20, 4..20, 7..7].map(|range| within(&range, &(5..10))),
            [5..5, 10..10, 5..10, 7..7]
        );
        assert_eq!(union([7..9, 3..3, 1..2].into_iter()), 1..9);
    }
}
