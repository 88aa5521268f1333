//! Engines of other makers beside ours: greedy texts, and interleaved rounds on the clock.

mod candle;
mod embedding;
mod llama;
mod threads;
mod timing;

use std::time::{Duration, Instant};

pub(crate) use candle::Candle;
pub(crate) use embedding::{EmbedArgs, Kernels, Original};
pub(crate) use llama::{Llama, Look};
pub(crate) use threads::restart_with;

/// A model with its cache.
pub(crate) trait Engine {
    /// Empties the cache; the next `tokens` tokens are a prompt.
    ///
    /// # Errors
    /// What the engine says.
    fn begin(&mut self, tokens: usize) -> anyhow::Result<()>;

    /// Appends tokens, the first of which stands at `position`, and returns the most probable next one.
    ///
    /// # Errors
    /// What the engine says.
    fn next(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<u32>;
}

/// The index of the largest logit; of several, the first.
pub(crate) fn most_probable(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map_or(0, |(token, _)| token as u32)
}

/// A text with its times.
#[derive(Debug, Clone, Default)]
pub(crate) struct GreedyText {
    /// The new tokens, the one that ended the text included.
    pub(crate) tokens: Vec<u32>,
    /// Time for the prompt.
    pub(crate) prefill: Duration,
    /// Time for all new tokens but the first, which comes with the prompt.
    pub(crate) decode: Duration,
}

impl GreedyText {
    /// New tokens a second; `None` without a second one.
    pub(crate) fn decode_tokens_per_second(&self) -> Option<f64> {
        (self.tokens.len() > 1).then(|| (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64())
    }
}

/// The most probable continuation of `prompt`, up to `end` or `max_tokens` tokens. `chunk` is the most tokens of a call.
///
/// # Errors
/// What the engine says.
pub(crate) fn continue_greedily(
    engine: &mut dyn Engine,
    prompt: &[u32],
    chunk: usize,
    max_tokens: usize,
    end: Option<u32>,
) -> anyhow::Result<GreedyText> {
    let start = Instant::now();
    let mut text = GreedyText { tokens: vec![read(engine, prompt, chunk)?], ..GreedyText::default() };
    text.prefill = start.elapsed();
    let mut token = text.tokens[0];
    while Some(token) != end && text.tokens.len() < max_tokens {
        token = engine.next(&[token], prompt.len() + text.tokens.len() - 1)?;
        text.tokens.push(token);
    }
    text.decode = start.elapsed() - text.prefill;
    Ok(text)
}

fn read(engine: &mut dyn Engine, prompt: &[u32], chunk: usize) -> anyhow::Result<u32> {
    anyhow::ensure!(!prompt.is_empty(), "expected a prompt of at least one token, got an empty one");
    engine.begin(prompt.len())?;
    let (mut next, mut position) = (0, 0);
    for part in prompt.chunks(chunk.max(1)) {
        next = engine.next(part, position)?;
        position += part.len();
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses the number of its cached tokens, plus one if it is `off`.
    pub(super) struct Counter {
        pub(super) tokens: usize,
        pub(super) off: bool,
        pub(super) calls: usize,
    }

    impl Engine for Counter {
        fn begin(&mut self, _: usize) -> anyhow::Result<()> {
            self.tokens = 0;
            Ok(())
        }

        fn next(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<u32> {
            anyhow::ensure!(position == self.tokens);
            (self.tokens, self.calls) = (self.tokens + tokens.len(), self.calls + 1);
            Ok(self.tokens as u32 + u32::from(self.off && self.tokens.is_multiple_of(2)))
        }
    }

    #[test]
    fn a_text_ends_at_its_end_or_at_the_limit() {
        let mut engine = Counter { tokens: 0, off: false, calls: 0 };
        assert_eq!(continue_greedily(&mut engine, &[9, 9, 9], 2, 4, None).unwrap().tokens, [3, 4, 5, 6]);
        assert_eq!(engine.calls, 2 + 3);
        assert_eq!(continue_greedily(&mut engine, &[9], 8, 9, Some(3)).unwrap().tokens, [1, 2, 3]);
        assert_eq!(continue_greedily(&mut engine, &[9], 8, 9, Some(1)).unwrap().tokens, [1]);
        assert!(continue_greedily(&mut engine, &[], 8, 9, None).is_err());
    }

    #[test]
    fn the_first_of_equal_logits_is_chosen() {
        assert_eq!(most_probable(&[0.0, 2.0, 2.0, f32::NEG_INFINITY]), 1);
    }
}
