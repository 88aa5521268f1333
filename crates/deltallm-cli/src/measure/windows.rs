//! Windows of a text.

/// A text in tokens, which windows are cut from. What a model wants in front of a text is in front of every window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowedText {
    beginning: Vec<u32>,
    text: Vec<u32>,
}

impl WindowedText {
    /// A text, and what is to be in front of every window (no token for most models).
    pub fn new(beginning: Vec<u32>, text: Vec<u32>) -> Self {
        Self { beginning, text }
    }

    /// Tokens of a window of the whole text.
    pub fn tokens(&self) -> usize {
        self.beginning.len() + self.text.len()
    }

    /// Consecutive windows of `context` tokens, at most `limit`; a last partial one is dropped. At least one token of a window is
    /// text.
    pub fn windows(&self, context: usize, limit: usize) -> Vec<Vec<u32>> {
        let parts = self.text.chunks_exact(self.of_text(context)).take(limit);
        parts.map(|part| [&self.beginning, part].concat()).collect()
    }

    /// The text behind its first `count` windows of `context` tokens.
    #[must_use]
    pub fn behind(&self, count: usize, context: usize) -> Self {
        let start = count.saturating_mul(self.of_text(context)).min(self.text.len());
        Self { beginning: self.beginning.clone(), text: self.text[start..].to_vec() }
    }

    /// Tokens of a window that are text.
    fn of_text(&self, context: usize) -> usize {
        context.saturating_sub(self.beginning.len()).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(beginning: &[u32], tokens: u32) -> WindowedText {
        WindowedText::new(beginning.to_vec(), (0..tokens).collect())
    }

    #[test]
    fn a_last_partial_window_is_dropped() {
        let text = text(&[], 10);
        assert_eq!(text.windows(4, usize::MAX), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(text.windows(4, 1).len(), 1);
        assert!(text.windows(11, usize::MAX).is_empty());
        assert_eq!(text.windows(10, usize::MAX).len(), 1);
    }

    #[test]
    fn every_window_has_the_beginning_and_one_token_less_of_text() {
        let text = text(&[99], 10);
        assert_eq!(text.tokens(), 11);
        assert_eq!(text.windows(4, usize::MAX), [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]);
        assert_eq!(text.windows(4, 2).len(), 2);
    }

    #[test]
    fn what_is_behind_some_windows_begins_where_they_end() {
        assert_eq!(text(&[], 10).behind(2, 4).windows(2, usize::MAX), [[8, 9]]);
        assert_eq!(text(&[99], 10).behind(2, 4).windows(4, usize::MAX), [[99, 6, 7, 8]]);
        assert!(text(&[], 10).behind(usize::MAX, 4).windows(1, usize::MAX).is_empty());
    }
}
