//! Interleaved rounds.

use std::time::Instant;

use serde::Serialize;

use super::{Engine, read};

/// What is timed.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Timing")]
pub(crate) struct TimingArgs {
    /// Time the engines on a text: a prompt of every length, and tokens decoded behind it
    #[arg(long)]
    pub(crate) bench: bool,
    /// Tokens of the prompts
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [512, 2048])]
    pub(crate) lengths: Vec<usize>,
    /// Rounds of all engines; the medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Tokens decoded behind each prompt
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) decoded: u32,
    /// Most tokens of a prompt in one call [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) chunk: Option<u32>,
}

impl TimingArgs {
    /// Most tokens of a call.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk.map_or(usize::MAX, |tokens| tokens as usize)
    }

    /// Tokens of text that are needed.
    pub(crate) fn tokens(&self) -> usize {
        self.lengths.iter().max().map_or(0, |longest| longest + self.decoded as usize)
    }
}

/// One engine behind one prompt. Ratios are the first engine's time over this one's.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EngineRow {
    /// Its name.
    pub(crate) engine: String,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
    /// Median over the rounds.
    pub(crate) prefill_tokens_per_second: f64,
    /// Median over the rounds.
    pub(crate) decode_tokens_per_second: f64,
    /// Above 1 is faster than the first engine.
    pub(crate) prefill_ratio: f64,
    /// Above 1 is faster than the first engine.
    pub(crate) decode_ratio: f64,
    /// Of the tokens behind the prompt, all engines being given the text's, how many the engine and the first would have chosen alike, 0 to 1.
    pub(crate) agreement: f64,
    /// Seconds of every round.
    pub(crate) prefill_seconds: Vec<f64>,
    /// Seconds of every round.
    pub(crate) decode_seconds: Vec<f64>,
}

/// Times all engines on the beginning of `text`, in an order that rotates from round to round.
///
/// # Errors
/// For a text that is too short, and what an engine says.
pub(crate) fn time_engines(
    engines: &mut [(String, Box<dyn Engine>)],
    text: &[u32],
    timing: &TimingArgs,
) -> anyhow::Result<Vec<EngineRow>> {
    anyhow::ensure!(
        text.len() >= timing.tokens(),
        "--lengths: expected a text of {} tokens, got one of {}; give a longer --text",
        timing.tokens(),
        text.len()
    );
    let mut rows = Vec::new();
    for &length in &timing.lengths {
        let (prompt, rest) = text.split_at(length);
        let mut seconds = vec![(Vec::new(), Vec::new()); engines.len()];
        let mut chosen = vec![Vec::new(); engines.len()];
        for round in 0..timing.rounds as usize {
            for turn in 0..seconds.len() {
                let i = (turn + round) % seconds.len();
                let engine = engines[i].1.as_mut();
                let start = Instant::now();
                chosen[i] = vec![read(engine, prompt, timing.chunk())?];
                seconds[i].0.push(start.elapsed().as_secs_f64());
                let start = Instant::now();
                for (index, token) in rest[..timing.decoded as usize].iter().enumerate() {
                    chosen[i].push(engine.next(&[*token], length + index)?);
                }
                seconds[i].1.push(start.elapsed().as_secs_f64());
                engine.begin(0)?; // the next one has the memory for itself
            }
        }
        let medians: Vec<_> = seconds.iter().map(|(prompt, rest)| (median(prompt), median(rest))).collect();
        for (i, (engine, _)) in engines.iter().enumerate() {
            let (prefill, decode) = medians[i];
            let same = chosen[i].iter().zip(&chosen[0]).filter(|(a, b)| a == b).count();
            rows.push(EngineRow {
                engine: engine.clone(),
                prompt_tokens: length,
                prefill_tokens_per_second: length as f64 / prefill,
                decode_tokens_per_second: f64::from(timing.decoded) / decode,
                prefill_ratio: medians[0].0 / prefill,
                decode_ratio: medians[0].1 / decode,
                agreement: same as f64 / chosen[0].len() as f64,
                prefill_seconds: seconds[i].0.clone(),
                decode_seconds: seconds[i].1.clone(),
            });
        }
    }
    Ok(rows)
}

/// The middle one; of an even number the upper of the middle two.
fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::tests::Counter;

    #[test]
    fn engines_are_timed_on_the_same_tokens_and_compared_with_the_first() {
        let engine = |off| Box::new(Counter { tokens: 0, off, calls: 0 }) as Box<dyn Engine>;
        let mut engines = [("a".to_owned(), engine(false)), ("b".to_owned(), engine(true))];
        let timing = TimingArgs { bench: true, lengths: vec![4, 6], rounds: 2, decoded: 3, chunk: Some(4) };
        let rows = time_engines(&mut engines, &[7; 9], &timing).unwrap();
        let row = |row: &EngineRow| {
            (row.engine.clone(), row.prompt_tokens, row.agreement, row.prefill_seconds.len())
        };
        let name = String::from;
        let expected =
            [(name("a"), 4, 1.0, 2), (name("b"), 4, 0.5, 2), (name("a"), 6, 1.0, 2), (name("b"), 6, 0.5, 2)];
        assert_eq!(rows.iter().map(row).collect::<Vec<_>>(), expected);
        let error = time_engines(&mut engines, &[7; 8], &timing).unwrap_err();
        assert!(error.to_string().contains("expected a text of 9 tokens, got one of 8"), "{error}");
    }
}
