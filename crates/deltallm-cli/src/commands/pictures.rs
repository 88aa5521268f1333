//! Draws the pictures of the documentation that `report` does not.
//!
//! `cargo run --release -- pictures --help`

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;

use crate::args::whole;
use crate::pictures::{CurveFiles, MethodChoice, curves, lengths, method};
use crate::report::Subject;
use crate::{KernelArgs, ModelArgs, print_line, read_text, write_whole};

/// Draw a picture of the documentation
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    picture: Picture,
}

#[derive(Debug, Subcommand)]
enum Picture {
    /// One key channel, the deltas of a head, and the map of its query-key pairs
    Method(Box<MethodArgs>),
    /// Speed and memory over context, from what the benchmarks print with --json
    Curves {
        #[command(flatten)]
        files: CurveFiles,
        /// Where the picture goes
        #[arg(long, value_name = "FILE.png")]
        out: PathBuf,
    },
    /// Divergence, memory and time of attention while a text grows, from what the benchmark `lengths` prints
    Lengths {
        /// What `lengths` has printed, one file for each model and text
        #[arg(long = "run", value_name = "FILE", required = true, num_args = 1..)]
        runs: Vec<PathBuf>,
        /// Where the picture goes
        #[arg(long, value_name = "FILE.png")]
        out: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct MethodArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Text that the model reads, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The passage begins where this stands first in the text
    #[arg(long, value_name = "WORDS", default_value = "")]
    start: String,
    /// Tokens of the passage
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole(1..=384_u16))]
    tokens: u16,
    #[command(flatten)]
    choice: MethodChoice,
    /// Where the picture goes
    #[arg(long, value_name = "FILE.png")]
    out: PathBuf,
    #[command(flatten)]
    kernel: KernelArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.picture {
        Picture::Method(args) => draw_method(&args),
        Picture::Curves { files, out } => write(&out, &curves(&files)?),
        Picture::Lengths { runs, out } => write(&out, &lengths(&runs)?),
    }
}

fn draw_method(args: &MethodArgs) -> anyhow::Result<()> {
    let text = read_text("--text", &args.text)?;
    let start = text.find(&args.start).context("--start: expected words that stand in the text")?;
    let model = args.model.open()?;
    let kernel = args.kernel.resolve(&model.graph)?.with_all_prompts();
    let (tokens, context) = (model.encode_windows(&text[start..])?, usize::from(args.tokens));
    anyhow::ensure!(
        tokens.tokens() >= context,
        "--text {}: expected at least {context} tokens from --start on, got {}",
        args.text.display(),
        tokens.tokens()
    );
    let subject = Subject { model: &model, kernel: &kernel, tokens: &tokens, text: "", context, windows: 1 };
    let (png, summary) = method(&subject, args.choice)?;
    print_line(summary)?;
    write(&args.out, &png)
}

fn write(out: &Path, png: &[u8]) -> anyhow::Result<()> {
    write_whole(out, png)?;
    print_line(out.display())
}
