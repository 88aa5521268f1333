//! Continues a tale with delta attention and says what that saved; then the same with dense attention, to compare.
//!
//! `cargo run --release --example generate [PROMPT [MODEL.gguf]]`; the program `deltallm` has options for everything.

mod output;

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use deltallm::models::{Model, ModelFile, Sampler, SamplerConfig, Session, Tokenizer};
use deltallm::{AttentionProfile, Footprint, Isa, KernelKind, KernelSpec, KvStore};

/// A language model of 3.7 MB that tells fairy tales, its attention settings, and the beginning of a tale.
const MODEL: &[u8] = include_bytes!("../crates/deltallm-cli/assets/fairy-tales.gguf");
const PROFILE: &str = include_str!("../crates/deltallm-cli/assets/profiles/fairy-tales.json");
const TALE: &str = include_str!("../crates/deltallm-cli/assets/golden-bird.txt");
/// Tokens to generate.
const TOKENS: usize = 160;

fn main() -> anyhow::Result<()> {
    output::run(compare)
}

fn compare(out: &mut dyn Write) -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (prompt, path) = (args.next(), args.next());

    // A model file is mapped into memory. It holds the tokenizer too.
    let file = match &path {
        Some(path) => ModelFile::open(path)?,
        None => ModelFile::from_gguf_bytes("fairy-tales", MODEL)?,
    };
    // The fastest instruction set, or the one that DELTALLM_SIMD names.
    let file = file.with_isa(Isa::from_env()?);
    let tokenizer = Tokenizer::from_model(&file)?;
    let model = Arc::new(Model::load(&file)?);

    // Attention settings come from a calibration; without one, thresholds find a share of zeros by themselves. The compact store
    // keeps deltas of keys and values in 4 bits.
    let settings = match &path {
        Some(_) => KernelSpec::default(),
        None => serde_json::from_str::<AttentionProfile>(PROFILE)?.spec().clone(),
    };
    let hybrid = settings.store(KvStore::Compact);
    let dense = KernelSpec::default().kernel(KernelKind::Dense);

    let text = prompt.as_deref().unwrap_or(TALE);
    let prompt = tokenizer.encode_beginning(text)?;
    writeln!(out, "[… {} tokens …]\n{}", prompt.len(), text.lines().last().unwrap_or_default())?;
    let ours = Continued::new(&model, &tokenizer, &hybrid, &prompt, out)?;
    let exact = Continued::new(&model, &tokenizer, &dense, &prompt, &mut std::io::sink())?;

    let same = ours.tokens.iter().zip(&exact.tokens).take_while(|(a, b)| a == b).count();
    writeln!(out, "\n")?;
    for (name, run) in [("hybrid", &ours), ("dense", &exact)] {
        writeln!(
            out,
            "{name:<7} {:>8} bytes of cache, prompt at {:.0} tokens/s, text at {:.0} tokens/s",
            run.footprint.total(),
            run.prompt_speed,
            run.text_speed
        )?;
    }
    writeln!(
        out,
        "{:.0} % of the deltas are zero, {:.0} % of the far values were skipped",
        100.0 * ours.zero_fraction,
        100.0 * ours.values_skipped
    )?;
    writeln!(
        out,
        "cache {:.0} % of f16; text identical for the first {same} of {} tokens",
        100.0 * ours.footprint.total() as f64 / exact.footprint.total() as f64,
        ours.tokens.len()
    )?;
    Ok(())
}

/// A continued prompt, and what it took.
struct Continued {
    tokens: Vec<u32>,
    /// Tokens per second.
    prompt_speed: f64,
    text_speed: f64,
    footprint: Footprint,
    zero_fraction: f64,
    values_skipped: f64,
}

impl Continued {
    fn new(
        model: &Arc<Model>,
        tokenizer: &Tokenizer,
        spec: &KernelSpec,
        prompt: &[u32],
        out: &mut dyn Write,
    ) -> anyhow::Result<Self> {
        // A session has one attention kernel, with its cache, for each layer.
        let mut session = Session::with_spec(model.clone(), spec)?;

        // The prompt in large pieces, then one token after the other.
        let start = Instant::now();
        let logits = session.prefill(prompt)?;
        let prompt_speed = prompt.len() as f64 / start.elapsed().as_secs_f64();
        // The most probable token, but repetitions cost: drawn texts part at the first near thing.
        let mut sampler = Sampler::new(SamplerConfig::default().with_repetition_penalty(1.1))?;
        let start = Instant::now();
        let mut generation = session.generate(logits, tokenizer, &mut sampler);
        for generated in generation.by_ref().take(TOKENS) {
            write!(out, "{}", generated?.text)?;
            out.flush()?;
        }
        let tokens = generation.tokens().to_vec();
        let sparsity = session.stats().total();
        Ok(Self {
            prompt_speed,
            text_speed: tokens.len() as f64 / start.elapsed().as_secs_f64(),
            tokens,
            footprint: session.footprint(),
            zero_fraction: sparsity.zero_fraction(),
            values_skipped: sparsity.values_skipped(),
        })
    }
}
