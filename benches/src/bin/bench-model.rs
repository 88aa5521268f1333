//! `deltallm bench` with candle among those who take part, on the same file and tokens.

use std::process::ExitCode;
use std::time::Instant;

use deltallm_benches::{peers::candle_model::CANDLE, restart_with};
use deltallm_cli::{bench, main_with};

/// Tokens per second of whole models: `deltallm bench`, and candle's quantized Llama (--kernels dense-f16,hybrid-compact,candle).
///
/// Everyone reads the same file and the same tokens in one process, in turns. docs/benchmarks.md says what the columns mean;
/// benches/peers/llama_cpp.py sets llama.cpp beside them.
#[derive(Debug, clap::Parser)]
#[command(name = "bench-model", version)]
struct Program {
    #[command(flatten)]
    args: bench::Args,
}

fn main() -> ExitCode {
    let start = Instant::now();
    main_with(|Program { args }: Program| {
        restart_with(args.threads)?;
        bench::run(&args, &[CANDLE], start)
    })
}
