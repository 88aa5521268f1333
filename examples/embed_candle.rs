//! candle's quantised Llama with our attention in it, beside candle's own.
//!
//! `cargo run --release --features candle --example embed_candle -- --model models/SmolLM2-135M-Instruct.Q4_1.gguf`
//!
//! How our attention comes into candle is in [`engines/llama.rs`](engines/llama.rs): a kernel behind candle's interface for
//! operations of one's own. candle's unchanged `ModelWeights` runs beside it, to be compared with.
//!
//! Weights are unpacked to f32 (by candle, `CANDLE_DEQUANTIZE_ALL`), its fastest form for prompts, unless `--linear packed`
//! says otherwise. Packed, candle rounds inputs of linear layers to 8 bits, which makes large differences of the smallest: there
//! the tokens depend on the order of a sum, of our own dense attention too (`DELTALLM_SIMD`).

use clap::Parser;

#[allow(dead_code, unused_imports, reason = "calibrate_candle uses the rest")]
mod engines;
mod output;

use engines::{Candle, EmbedArgs, Engine, Kernels, Llama};

fn main() -> anyhow::Result<()> {
    let args = EmbedArgs::parse();
    let (path, kernels) = args.start()?;
    let with = |kernels: Kernels| Ok(Box::new(Llama::open(path, &kernels)?) as Box<dyn Engine>);
    output::run(|_| args.compare(&Candle::open(path)?, kernels, &with))
}
