//! Prompt lookup: drafts for speculative decoding from what has been there before.

/// Drafts for [speculative decoding](crate::Session::decode_speculative) without a draft model (prompt lookup decoding): what followed the
/// last time that the same tokens were there. Summaries, edits and code repeat whole passages of their prompts; other texts hardly do.
///
/// ```
/// use deltallm_models::PromptLookup;
///
/// let text = [5, 1, 2, 3, 4, 9, 1, 2]; // after 1 and 2 came 3, 4 and 9
/// assert_eq!(PromptLookup::default().draft(&text), [3, 4]);
/// assert!(PromptLookup::default().draft(&[1, 2, 3]).is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptLookup {
    /// Tokens that must match for a draft, at least 1.
    pub min_match: usize,
    /// Most tokens of a draft.
    pub max_draft: usize,
}

impl Default for PromptLookup {
    /// Two tokens that match, 16 of a draft.
    fn default() -> Self {
        Self { min_match: 2, max_draft: 16 }
    }
}

impl PromptLookup {
    /// What may follow `tokens`: what follows the place before which most tokens match those at the end, of several such places the
    /// last. As many tokens are drafted as match, so that drafts that are accepted are followed by longer ones.
    pub fn draft<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let matching = |place: usize| {
            let pairs = tokens[..place].iter().rev().zip(tokens.iter().rev());
            pairs.take(self.max_draft).take_while(|(a, b)| a == b).count()
        };
        let best = (1..tokens.len()).map(|place| (matching(place), place)).max();
        match best.filter(|(matching, _)| *matching >= self.min_match.max(1)) {
            Some((matching, place)) => &tokens[place..tokens.len().min(place + matching)],
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_of_equal_ones_the_last() {
        let first = |tokens: &[u32]| PromptLookup::default().draft(tokens)[0];
        assert_eq!(first(&[7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2]), 30);
        assert_eq!(first(&[7, 1, 2, 30, 8, 1, 2, 40, 9, 1, 2]), 40);
    }

    #[test]
    fn drafts_end_where_the_text_does() {
        let lookup = PromptLookup::default();
        assert_eq!(lookup.draft(&[1, 1, 1]), [1]);
        assert_eq!(lookup.draft(&[1, 2, 3, 1, 2]), [3, 1]);
        for few in [&[][..], &[1], &[1, 2], &[1, 2, 1]] {
            assert!(lookup.draft(few).is_empty(), "{few:?}");
        }
        let none = PromptLookup { max_draft: 0, ..lookup };
        assert!(none.draft(&[1, 2, 3, 1, 2]).is_empty());
    }
}
