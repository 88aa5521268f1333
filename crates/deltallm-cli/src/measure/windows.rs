//! Windows of a text.

/// Cuts a text into consecutive windows of `context` tokens; a last partial one is dropped.
pub fn windows(tokens: &[u32], context: usize, limit: Option<usize>) -> Vec<&[u32]> {
    tokens.chunks_exact(context).take(limit.unwrap_or(usize::MAX)).collect()
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
}
