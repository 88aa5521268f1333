//! Draws what delta attention does to a model on a text: sparsity, accuracy, bytes, time.
//!
//! `cargo run --release -- report --text TEXT --out DIR`

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use deltallm::ExactWindow;
use serde::Serialize;

use crate::args::{MOST, whole};
use crate::report::{PairChoice, Report, Subject, Verdict, page};
use crate::{
    CommonArgs, KernelArgs, KernelChoice, KernelKind, LoadedModel, ModelArgs, Phases, Progress, check_folder,
    note, print_json, print_line, read_text, write_whole,
};

/// The files that the help names.
const FILES: &str = "Files in DIR:
  report.html   all of it on one page, which needs no other file and no network
  sparsity.png  zeros by layer and kv head, values skipped by layer
  accuracy.png  KL divergence and perplexity against zeros: the paper's rule, one threshold, calibrated thresholds
  bytes.png     KL divergence against bytes of the cache, for every store
  time.png      time of attention, KL divergence and perplexity against context length
  pairs.png     what becomes of each query-key pair of one head
  report.json   the numbers behind them";

/// Say whether hybrid attention is worth it for a model on a text: one page with five pictures
#[derive(Debug, clap::Args)]
#[command(after_help = FILES)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text like what the model will read, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Folder for the pictures; it is made if it does not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Tokens in a window; time is taken from a quarter of it to twice it [default: 1024, or the model's context if that is shorter]
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST))]
    context: Option<usize>,
    /// Windows to measure accuracy on; their logits are held in memory
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole(1..=u32::MAX))]
    windows: u32,
    /// Layer of pairs.png [default: one with typical values]
    #[arg(long, value_name = "N", value_parser = whole(0..=MOST))]
    layer: Option<usize>,
    /// Kv head of pairs.png [default: one with typical values]
    #[arg(long, value_name = "N", value_parser = whole(0..=MOST))]
    head: Option<usize>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    check_out(&args.out)?;
    let text = read_text("--text", &args.text)?;
    let model = args.model.open()?;
    // Pictures of what the method does, also where a profile would do without it.
    let kernel = args.kernel.resolve(&model.graph)?.with_all_prompts();
    check_kernel(&kernel, &model)?;
    let choice = PairChoice {
        layer: check_index("--layer", "layers", args.layer, model.graph.config().layers)?,
        kv_head: check_index("--head", "kv heads", args.head, model.graph.config().kv_heads)?,
    };
    let tokens = model.encode_windows(&text)?;
    let subject = Subject {
        model: &model,
        kernel: &kernel,
        tokens: &tokens,
        text: &args.text.file_name().unwrap_or_default().to_string_lossy(),
        context: context(&args, &model, &kernel)?,
        windows: args.windows as usize,
    };
    let needed = subject.context.saturating_mul(subject.windows);
    anyhow::ensure!(
        tokens.tokens() >= needed,
        "--text {}: expected {} windows of {} tokens, got a text of {}; use a longer text, or smaller --windows or --context",
        args.text.display(),
        subject.windows,
        subject.context,
        tokens.tokens()
    );

    let start = Instant::now();
    let (total, mut done) = (Report::steps(&subject), 0);
    let mut progress = Progress::new("measuring");
    progress.update(done, total);
    let report = Report::measure(&subject, choice, &mut || {
        done += 1;
        progress.update(done, total);
    })?;
    drop(progress);
    let pictures = report.pictures(&subject)?;
    let html = page(&report, &kernel.to_string(), &pictures)?;
    let verdict = Verdict::new(&report);
    let output = Output { report, verdict: verdict.clone(), seconds: start.elapsed().as_secs_f64() };

    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("--out {}: cannot make the folder", args.out.display()))?;
    let mut json = serde_json::to_vec(&output)?;
    json.push(b'\n');
    let mut files: Vec<_> = pictures.iter().map(|it| (it.file, &it.png[..], &it.summary[..])).collect();
    files.push(("report.html", html.as_bytes(), "all of it on one page"));
    files.push(("report.json", &json, "the numbers behind the pictures"));
    // All files are there before anything is said: whoever reads may leave after the first line.
    for (file, contents, _) in &files {
        write_whole(&args.out.join(file), contents)?;
    }
    for (file, _, summary) in &files {
        print_line(format_args!("{}: {summary}", args.out.join(file).display()))?;
    }
    print_line(verdict.headline)?;
    verdict.reasons.iter().try_for_each(|reason| print_line(format_args!("- {reason}")))?;
    note(format_args!("model        {}", model.name));
    note(format_args!("kernel       {kernel}"));
    kernel.warning_beyond_profile(subject.context).into_iter().for_each(note);
    note(format_args!("time         {:.1} s", output.seconds));
    if args.common.json {
        print_json(&output)?;
    }
    Ok(())
}

/// Fails before the work rather than after it.
fn check_out(out: &Path) -> anyhow::Result<()> {
    let ancestor = out.ancestors().find(|path| path.exists());
    anyhow::ensure!(
        ancestor.is_none_or(Path::is_dir),
        "--out {}: expected a folder, got a file or something below one",
        out.display()
    );
    check_folder(ancestor.unwrap_or(Path::new("."))).with_context(|| format!("--out {}", out.display()))
}

fn check_kernel(kernel: &KernelChoice, model: &LoadedModel) -> anyhow::Result<()> {
    anyhow::ensure!(
        kernel.kind() == KernelKind::Hybrid,
        "--kernel: expected hybrid, got {}; dense attention is what it is compared with anyway",
        kernel.kind()
    );
    anyhow::ensure!(
        kernel.phases() == Phases::Both,
        "--phases: expected both, got prefill: the text is read as a prompt, so there is no other phase"
    );
    let coded = (0..model.graph.config().layers).any(|layer| kernel.hybrid_config(layer).is_some());
    anyhow::ensure!(
        coded,
        "--profile: expected a layer with delta-coded keys, got none: the profile or short attention windows make every layer dense; \
         --profile none --theta X codes more layers"
    );
    Ok(())
}

fn check_index(
    option: &str,
    what: &str,
    index: Option<usize>,
    count: usize,
) -> anyhow::Result<Option<usize>> {
    if let Some(got) = index.filter(|index| *index >= count) {
        anyhow::bail!("{option}: expected 0 to {}, the model has {count} {what}, got {got}", count - 1);
    }
    Ok(index)
}

fn context(args: &Args, model: &LoadedModel, kernel: &KernelChoice) -> anyhow::Result<usize> {
    let layers = 0..model.graph.config().layers;
    let exact = layers.filter_map(|layer| kernel.hybrid_config(layer)).map(|config| {
        let window = if let ExactWindow::Sliding(keys) = config.exact_window { keys } else { 0 };
        window.saturating_add(config.exact_sinks)
    });
    let least = exact.max().unwrap_or(0).saturating_add(2).max(32);
    model.window_tokens(args.context, least)
}

/// The result for programs.
#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    report: Report,
    /// Whether to use it, in words.
    verdict: Verdict,
    seconds: f64,
}
