//! The command line of `bench-model`.

use std::path::PathBuf;

use crate::model::engine::EngineName;
use crate::subject::Phase;

/// Tokens per second of whole models: prompts in an empty session, and decoding behind a cache of given lengths.
///
/// Our attention kernels, and candle's quantized Llama, read the same file and the same tokens in one process, in turns.
/// docs/benchmarks.md says what the columns mean; benches/peers/llama_cpp.py sets llama.cpp beside them.
#[derive(Debug, clap::Parser)]
#[command(name = "bench-model", version)]
pub struct Args {
    /// GGUF file, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    pub model: Option<PathBuf>,
    /// Text that is read, UTF-8 [default: this project's documentation]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Who takes part: candle, or KIND-STORE[-PRECISION] as the examples' --kernel, --kv and --precision; ratios refer to the first
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
    /// Tokens of the prompts
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "512,2048", value_parser = clap::value_parser!(u32).range(1..))]
    prompts: Vec<u32>,
    /// Tokens in the cache before decoding
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "128,2048", value_parser = clap::value_parser!(u32).range(1..))]
    depths: Vec<u32>,
    /// Tokens decoded in a row
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
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
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub repetitions: u16,
    /// Threads of everyone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Only load the model and read a prompt of N tokens, with one kernel; time counts from the start of the program
    #[arg(long, value_name = "N", conflicts_with_all = ["prompts", "depths", "decode_tokens", "phases", "repetitions"], value_parser = clap::value_parser!(u32).range(1..))]
    pub first_token: Option<u32>,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    pub json: bool,
}

/// Something to time: a phase at a length.
pub type Test = (Phase, usize);

impl Args {
    /// What is to be timed, shortest first.
    pub fn tests(&self) -> Vec<Test> {
        let of = |phase: Phase| match phase {
            Phase::Prefill => &self.prompts,
            Phase::Decode => &self.depths,
        };
        let tests = self.phases.iter().flat_map(|&phase| of(phase).iter().map(move |n| (phase, *n as usize)));
        let mut tests: Vec<Test> = tests.collect();
        tests.sort_unstable_by_key(|&(phase, n)| (phase == Phase::Decode, n));
        tests.dedup();
        tests
    }

    /// The longest sequence that is needed.
    pub fn longest(&self) -> usize {
        let decoded = |phase| if phase == Phase::Decode { usize::from(self.decode_tokens) } else { 0 };
        let longest = self.tests().into_iter().map(|(phase, n)| n + decoded(phase)).max().unwrap_or(0);
        self.first_token.map_or(longest, |tokens| tokens as usize)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn prompts_come_before_depths_and_decoded_tokens_need_room() {
        let args = |text: &str| Args::try_parse_from(text.split(' ')).unwrap();
        let all = args("bench-model --phases decode,prefill --prompts 9,3,9 --depths 8 --decode-tokens 4");
        assert_eq!(all.tests(), [(Phase::Prefill, 3), (Phase::Prefill, 9), (Phase::Decode, 8)]);
        assert_eq!(all.longest(), 12);
        assert_eq!(args("bench-model --phases prefill --prompts 9 --depths 99").longest(), 9);
        assert_eq!(args("bench-model --first-token 32").longest(), 32);
    }
}
