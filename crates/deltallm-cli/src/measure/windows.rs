//! Windows of a text.

/// Cuts a text into consecutive windows of `context` tokens; a last partial one is dropped.
pub fn windows(tokens: &[u32], context: usize, limit: Option<usize>) -> Vec<&[u32]> {
    tokens.chunks_exact(context).take(limit.unwrap_or(usize::MAX)).collect()
}

/// The same of windows that each begin with `beginning` (at least one token of text follows): what a model wants in front of a text
/// is in front of every window.
pub fn windows_with_beginning(
    beginning: &[u32],
    text: &[u32],
    context: usize,
    limit: Option<usize>,
) -> Vec<Vec<u32>> {
    let of_text = context.saturating_sub(beginning.len()).max(1);
    windows(text, of_text, limit).into_iter().map(|part| [beginning, part].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_last_partial_window_is_dropped() {
        let tokens: Vec<u32> = (0..10).collect();
        assert_eq!(windows(&tokens, 4, None), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(windows(&tokens, 4, Some(1)).len(), 1);
        assert!(windows(&tokens, 11, None).is_empty());
    }

    #[test]
    fn every_window_has_the_beginning_and_one_token_less_of_text() {
        let text: Vec<u32> = (0..10).collect();
        assert_eq!(
            windows_with_beginning(&[99], &text, 4, None),
            [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
        );
        assert_eq!(windows_with_beginning(&[], &text, 4, None), windows(&text, 4, None));
        assert_eq!(windows_with_beginning(&[99], &text, 4, Some(2)).len(), 2);
    }
}
