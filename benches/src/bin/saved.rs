//! What it takes to save, open and fork a session that has read a text.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::ensure;
use clap::Parser;
use deltallm::MemoryBudget;
use deltallm::models::Session;
use deltallm_benches::machine;
use deltallm_benches::timing::median;
use deltallm_cli::{
    KernelArgs, KernelChoice, LoadedModel, dense_f16_bytes, main_with, print_json, read_text,
};
use serde::Serialize;

/// Time and bytes of saving, opening, mapping and forking a session, beside reading its text anew.
///
/// All times are medians of --repetitions in one process, but for reading the text, which is done once; files are in the system's memory when they are opened.
#[derive(Debug, Parser)]
#[command(name = "saved", version)]
struct Args {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<PathBuf>,
    /// Text that is read, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of it
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Where the file goes, which is deleted in the end
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Sessions that go on from the text, and tokens of each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "8,64")]
    samples: Vec<u32>,
    /// Times that everything is done
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    cpu: String,
    date: String,
    threads: usize,
    kernel: String,
    tokens: usize,
    /// Reading the text.
    read_ms: f64,
    file_bytes: u64,
    cache_bytes: usize,
    dense_f16_bytes: usize,
    /// `save_ms`, and `write_ms` for as many bytes to a file and to the disk; `load_ms`, `map_ms` and `fork_ms` until the session is there, each with
    /// the next token (`…_first_token_ms`); `token_ms` of a session that nobody shares.
    #[serde(flatten)]
    times: BTreeMap<&'static str, f64>,
    samples: [u32; 2],
    /// What the budget holds when one session has got so many more tokens, and when all have.
    one_sample_bytes: usize,
    all_samples_bytes: usize,
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).build_global()?;
    let [samples, more] = args.samples[..] else {
        anyhow::bail!("--samples: expected two numbers, sessions and tokens, got {}", args.samples.len());
    };
    let model = LoadedModel::open(args.model.as_deref())?;
    let choice = args.kernel.resolve(&model.graph)?;
    let tokens = model.encode(&read_text("--text", &args.text)?)?;
    let n = args.n as usize;
    ensure!(tokens.len() > n, "--n: expected fewer tokens than the {} of --text, got {n}", tokens.len());
    let (text, next) = (&tokens[..n], tokens[n]);
    let budget = MemoryBudget::unlimited();
    let session = |choice: &KernelChoice| Session::new(model.graph.clone(), |layer| choice.make(layer));
    let choice = choice.with_budget(budget.clone());

    let mut read = session(&choice)?;
    let (read_ms, _) = timed(|| read.prefill(text))?;
    let path = args.folder.join(format!("saved-{}.kv", std::process::id()));
    let mut times: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut file_bytes = 0;
    for _ in 0..args.repetitions {
        let mut took = |what, ms| times.entry(what).or_default().push(ms);
        // To a new name, as the bytes alone.
        let _ = fs::remove_file(&path);
        took("save_ms", timed(|| read.save(&path))?.0);
        let bytes = fs::read(&path)?;
        file_bytes = bytes.len() as u64;
        let beside = path.with_extension("bytes");
        took("write_ms", timed(|| write(&beside, &bytes))?.0);
        fs::remove_file(&beside)?;
        let mut loaded = session(&choice)?;
        took("load_ms", timed(|| loaded.load(&path))?.0);
        took("load_first_token_ms", timed(|| loaded.decode(next))?.0);
        // The second token of a session of its own.
        took("token_ms", timed(|| loaded.decode(next))?.0);
        let mut mapped = session(&choice)?;
        took("map_ms", timed(|| mapped.map(&path))?.0);
        took("map_first_token_ms", timed(|| mapped.decode(next))?.0);
        let (fork_ms, mut fork) = timed(|| read.fork())?;
        took("fork_ms", fork_ms);
        took("fork_first_token_ms", timed(|| fork.decode(next))?.0);
    }
    fs::remove_file(&path)?;
    let cache_bytes = budget.used();
    let mut forks = Vec::new();
    let mut held = Vec::new();
    for _ in 0..samples {
        let mut fork = read.fork()?;
        (0..more).try_for_each(|_| fork.decode(next).map(drop))?;
        forks.push(fork);
        held.push(budget.used());
    }
    print_json(&Report {
        model: model.name.clone(),
        cpu: machine::cpu(),
        date: machine::date(),
        threads: rayon::current_num_threads(),
        kernel: choice.to_string(),
        tokens: n,
        read_ms,
        file_bytes,
        cache_bytes,
        dense_f16_bytes: dense_f16_bytes(model.graph.config(), n),
        times: times.into_iter().map(|(what, times)| (what, median(&times))).collect(),
        samples: [samples, more],
        one_sample_bytes: held.first().copied().unwrap_or(0),
        all_samples_bytes: held.last().copied().unwrap_or(0),
    })
}

/// The time of some work, in milliseconds, and what came of it.
fn timed<T, E: Into<anyhow::Error>>(work: impl FnOnce() -> Result<T, E>) -> anyhow::Result<(f64, T)> {
    let start = Instant::now();
    let result = work().map_err(Into::into)?;
    Ok((start.elapsed().as_secs_f64() * 1e3, result))
}

/// What saving does with its bytes.
fn write(path: &PathBuf, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
