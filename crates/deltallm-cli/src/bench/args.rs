//! The command line of `bench`.

use std::path::PathBuf;

use super::engine::EngineName;
use super::phase::Phase;
use crate::args::whole;

/// Lengths of prompts and of caches, unless others are asked for or the model takes fewer.
const PROMPTS: [u32; 2] = [512, 2048];
const DEPTHS: [u32; 2] = [128, 2048];

/// Time a whole model: prompts, and decoding behind a cache, in tokens a second
///
/// The kernels read the same tokens in one process, in turns: everyone runs once a round, in an order that rotates, and the medians
/// of the rounds are the result. docs/benchmarks.md says what the columns mean.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    pub model: Option<PathBuf>,
    /// Text that is read, UTF-8 [default: tales by the brothers Grimm]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Who takes part: KIND-STORE[-PRECISION] as --kernel, --kv and --precision of generate; ratios refer to the first
    #[arg(
        long,
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "dense-f16,hybrid-f16,hybrid-compact"
    )]
    pub kernels: Vec<EngineName>,
    /// Settings of hybrid attention from a calibration (JSON), or none [default: built-in ones, if there are any for the model]
    #[arg(long, value_name = "FILE|none")]
    pub profile: Option<String>,
    /// Tokens of the prompts, and tokens in the cache before decoding
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with_all = ["prompts", "depths"], value_parser = whole(1..=u32::MAX))]
    n: Vec<u32>,
    /// Tokens of the prompts [default: 512,2048, if the model takes them]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = whole(1..=u32::MAX))]
    prompts: Vec<u32>,
    /// Tokens in the cache before decoding [default: 128,2048, if the model takes them]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = whole(1..=u32::MAX))]
    depths: Vec<u32>,
    /// Tokens decoded in a row
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole(1..=u16::MAX))]
    pub decode_tokens: u16,
    /// What is timed
    #[arg(
        long,
        value_name = "PHASE,...",
        value_delimiter = ',',
        default_value = "prefill,decode",
        hide_possible_values = true
    )]
    pub phases: Vec<Phase>,
    /// Rounds that count; their median is the result
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = whole(1..=u16::MAX))]
    pub repetitions: u16,
    /// Threads of everyone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole(1..=1024_u16))]
    pub threads: u16,
    /// Only load the model and read a prompt of N tokens, with one kernel; time counts from the start of the program
    #[arg(long, value_name = "N", conflicts_with_all = ["n", "prompts", "depths", "decode_tokens", "phases", "repetitions"], value_parser = whole(1..=u32::MAX))]
    pub first_token: Option<u32>,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    pub json: bool,
}

/// Something to time: a phase at a length.
pub(super) type Test = (Phase, usize);

impl Args {
    /// What is to be timed with a model that takes `context` tokens, shortest first.
    ///
    /// # Errors
    /// For lengths that it does not take.
    pub(super) fn tests(&self, context: usize) -> anyhow::Result<Vec<Test>> {
        let decoded = |phase| if phase == Phase::Decode { usize::from(self.decode_tokens) } else { 0 };
        let mut tests: Vec<Test> = Vec::new();
        for &phase in &self.phases {
            let (given, usual) = match phase {
                Phase::Prefill => (&self.prompts, PROMPTS),
                Phase::Decode => (&self.depths, DEPTHS),
            };
            let given = if self.n.is_empty() { given } else { &self.n };
            let fits = |n: &u32| *n as usize + decoded(phase) <= context;
            let lengths: Vec<u32> = match given.is_empty() {
                true => usual.into_iter().filter(fits).collect(),
                false => given.clone(),
            };
            if let Some(longest) = lengths.iter().max().filter(|n| !fits(n)) {
                anyhow::bail!(
                    "--n, --prompts, --depths: expected lengths (with decoded tokens) of at most {context}, the model's context, got {}",
                    *longest as usize + decoded(phase)
                );
            }
            tests.extend(lengths.into_iter().map(|n| (phase, n as usize)));
        }
        anyhow::ensure!(
            !tests.is_empty(),
            "--n: expected lengths of at most {context}, the model's context, got none"
        );
        tests.sort_unstable_by_key(|&(phase, n)| (phase == Phase::Decode, n));
        tests.dedup();
        Ok(tests)
    }

    /// Tokens that the longest of the tests needs.
    pub(super) fn longest(&self, tests: &[Test]) -> usize {
        let decoded = |phase| if phase == Phase::Decode { usize::from(self.decode_tokens) } else { 0 };
        tests.iter().map(|&(phase, n)| n + decoded(phase)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn args(text: &str) -> Args {
        Program::try_parse_from(text.split(' ')).unwrap().args
    }

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn prompts_come_before_depths_and_decoded_tokens_need_room() {
        let all = args("bench --phases decode,prefill --prompts 9,3,9 --depths 8 --decode-tokens 4");
        let tests = all.tests(12).unwrap();
        assert_eq!(tests, [(Phase::Prefill, 3), (Phase::Prefill, 9), (Phase::Decode, 8)]);
        assert_eq!(all.longest(&tests), 12);
        let error = all.tests(11).unwrap_err().to_string();
        assert!(error.contains("at most 11") && error.ends_with("got 12"), "{error}");
        let prompts = args("bench --phases prefill --prompts 9 --depths 99");
        assert_eq!(prompts.tests(12).unwrap(), [(Phase::Prefill, 9)]);
        let both = args("bench --n 5 --decode-tokens 1").tests(12).unwrap();
        assert_eq!(both, [(Phase::Prefill, 5), (Phase::Decode, 5)]);
    }

    #[test]
    fn usual_lengths_are_those_that_the_model_takes() {
        let usual = args("bench");
        assert_eq!(usual.tests(1024).unwrap(), [(Phase::Prefill, 512), (Phase::Decode, 128)]);
        assert_eq!(usual.tests(8192).unwrap().len(), 4);
        assert!(usual.tests(64).unwrap_err().to_string().contains("got none"));
    }
}
