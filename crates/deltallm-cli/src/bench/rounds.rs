//! Interleaved rounds of several engines.

use std::time::Instant;

use super::engine::Engine;
use super::phase::Phase;
use super::timing::rotated;
use crate::measure::argmax;

/// An engine with its name.
pub(super) struct Entry<'m> {
    /// In results.
    pub name: String,
    /// The settings in words.
    pub settings: String,
    /// The engine.
    pub engine: Box<dyn Engine + 'm>,
}

/// What a round does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// A prompt, or tokens behind one.
    pub phase: Phase,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded behind it, where that is what is timed.
    pub decoded: usize,
    /// Rounds that count.
    pub repetitions: usize,
}

/// What came of it for one engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Of every round that counts: for the prompt, or for all decoded tokens together.
    pub seconds: Vec<f64>,
    /// The most probable token after the prompt.
    pub next: Option<usize>,
    /// Bytes of the cache at the end.
    pub cache_bytes: Option<usize>,
}

/// Runs everyone once a round, in an order that rotates, after a round that does not count. `step` is told the rounds that
/// are done, of `repetitions + 1`.
///
/// # Errors
/// What an engine says.
pub(super) fn measure(
    entries: &mut [Entry],
    tokens: &[u32],
    plan: &Plan,
    step: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Measured>> {
    let (prompt, rest) = tokens.split_at(plan.prompt.min(tokens.len()));
    let decoded = &rest[..plan.decoded.min(rest.len())];
    let mut measured = vec![Measured::default(); entries.len()];
    if plan.phase == Phase::Decode {
        for (entry, measured) in entries.iter_mut().zip(&mut measured) {
            entry.engine.clear()?;
            measured.next = argmax(entry.engine.prefill(prompt)?);
        }
    }
    for round in 0..=plan.repetitions {
        for i in rotated(entries.len(), round) {
            let (engine, measured) = (&mut entries[i].engine, &mut measured[i]);
            let seconds = match plan.phase {
                Phase::Prefill => {
                    engine.clear()?;
                    let start = Instant::now();
                    let logits = engine.prefill(prompt)?;
                    let seconds = start.elapsed().as_secs_f64();
                    measured.next = argmax(logits);
                    seconds
                }
                Phase::Decode => {
                    engine.rewind()?;
                    let start = Instant::now();
                    decoded.iter().try_for_each(|token| engine.decode(*token))?;
                    start.elapsed().as_secs_f64()
                }
            };
            if round > 0 {
                measured.seconds.push(seconds);
            }
            measured.cache_bytes = engine.cache_bytes();
        }
        step(round + 1);
    }
    // The next measurement has the memory for itself.
    entries.iter_mut().try_for_each(|entry| entry.engine.clear())?;
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Writes down what it is asked to do.
    struct Diary<'a>(char, &'a RefCell<String>);

    impl Engine for Diary<'_> {
        fn clear(&mut self) -> anyhow::Result<()> {
            Ok(())
        }

        fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Vec<f32>> {
            *self.1.borrow_mut() += &format!("{}{} ", self.0, prompt.len());
            Ok(vec![0.0, 2.0, 1.0])
        }

        fn decode(&mut self, token: u32) -> anyhow::Result<()> {
            *self.1.borrow_mut() += &format!("{token} ");
            Ok(())
        }

        fn rewind(&mut self) -> anyhow::Result<()> {
            *self.1.borrow_mut() += &format!("{}< ", self.0);
            Ok(())
        }

        fn cache_bytes(&self) -> Option<usize> {
            None
        }
    }

    #[track_caller]
    fn diary(plan: Plan) -> String {
        let diary = RefCell::new(String::new());
        let entry = |name: char| Entry {
            name: name.to_string(),
            settings: String::new(),
            engine: Box::new(Diary(name, &diary)),
        };
        let mut entries = ['a', 'b'].map(entry);
        let mut steps = Vec::new();
        let measured =
            measure(&mut entries, &[7, 8, 9, 10, 11], &plan, &mut |done| steps.push(done)).unwrap();
        assert_eq!(steps, (1..=plan.repetitions + 1).collect::<Vec<_>>());
        for measured in measured {
            assert_eq!((measured.seconds.len(), measured.next), (plan.repetitions, Some(1)));
        }
        drop(entries);
        diary.into_inner()
    }

    #[test]
    fn prompts_start_from_nothing_in_an_order_that_rotates() {
        let plan = Plan { phase: Phase::Prefill, prompt: 3, decoded: 0, repetitions: 2 };
        assert_eq!(diary(plan), "a3 b3 b3 a3 a3 b3 ");
    }

    #[test]
    fn every_round_decodes_the_same_tokens_behind_a_prompt_that_is_read_once() {
        let plan = Plan { phase: Phase::Decode, prompt: 2, decoded: 2, repetitions: 1 };
        assert_eq!(diary(plan), "a2 b2 a< 9 10 b< 9 10 b< 9 10 a< 9 10 ");
    }
}
