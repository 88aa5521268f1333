//! Guessing what follows from what has been there before.

/// Guesses what follows a text: what followed the last time that the same tokens were there. Summaries, edits and code repeat whole
/// passages of their prompts; other texts hardly do.
///
/// ```
/// use deltallm_models::PromptLookup;
///
/// let text = [5, 1, 2, 3, 4, 9, 1, 2]; // after 1 and 2 came 3, 4 and 9
/// assert_eq!(PromptLookup::default().guess(&text), [3, 4]);
/// assert!(PromptLookup::default().guess(&[1, 2, 3]).is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PromptLookup {
    /// Tokens that must be the same for a guess, at least 1.
    pub least_alike: usize,
    /// Most tokens that are guessed at once.
    pub most_guesses: usize,
}

impl Default for PromptLookup {
    /// Two tokens alike, 16 guesses.
    fn default() -> Self {
        Self { least_alike: 2, most_guesses: 16 }
    }
}

impl PromptLookup {
    /// What may follow `tokens`: what follows the place before which most tokens are the same as at the end, of several such places the
    /// last. As many tokens are guessed as are the same, so that guesses that turn out right are followed by more.
    pub fn guess<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let alike = |place: usize| {
            let pairs = tokens[..place].iter().rev().zip(tokens.iter().rev());
            pairs.take(self.most_guesses).take_while(|(a, b)| a == b).count()
        };
        let best = (1..tokens.len()).map(|place| (alike(place), place)).max();
        match best.filter(|(alike, _)| *alike >= self.least_alike.max(1)) {
            Some((alike, place)) => &tokens[place..tokens.len().min(place + alike)],
            None => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_wins_and_of_equal_ones_the_last() {
        let guess = |tokens: &[u32]| PromptLookup::default().guess(tokens)[0];
        assert_eq!(guess(&[7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2]), 30);
        assert_eq!(guess(&[7, 1, 2, 30, 8, 1, 2, 40, 9, 1, 2]), 40);
    }

    #[test]
    fn guesses_end_where_the_text_does() {
        let lookup = PromptLookup::default();
        assert_eq!(lookup.guess(&[1, 1, 1]), [1]);
        assert_eq!(lookup.guess(&[1, 2, 3, 1, 2]), [3, 1]);
        for few in [&[][..], &[1], &[1, 2], &[1, 2, 1]] {
            assert!(lookup.guess(few).is_empty(), "{few:?}");
        }
        let none = PromptLookup { most_guesses: 0, ..lookup };
        assert!(none.guess(&[1, 2, 3, 1, 2]).is_empty());
    }
}
