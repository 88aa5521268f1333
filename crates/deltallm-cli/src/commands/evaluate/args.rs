//! What can be said to `evaluate`.

use std::path::PathBuf;

use crate::args::{Baseline, MOST, whole};
use crate::{CommonArgs, KernelArgs, ModelArgs, TaskKind};

/// Measure a model with delta attention, alone or beside dense attention: perplexity and downstream tasks
#[derive(Debug, clap::Args)]
#[command(after_help = FIELDS)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// perplexity, choices, schema, last-word or squad
    #[arg(long, value_enum, hide_possible_values = true)]
    pub(super) task: TaskKind,
    /// A text (perplexity), SQuAD 2.0 (squad) or JSON lines
    #[arg(long, value_name = "FILE")]
    pub(super) data: PathBuf,
    /// Score only the first N examples (perplexity: windows) [default: all]
    #[arg(long, value_name = "N", value_parser = whole(1..=u32::MAX))]
    pub(super) limit: Option<u32>,
    /// Tokens in a window (perplexity; default 1024), or most tokens of a sequence (default: the model's context)
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST))]
    pub(super) context: Option<usize>,
    /// Perplexity: attend one token at a time, as in generation
    #[arg(long)]
    pub(super) decode: bool,
    /// Between context and continuation (choices, schema, last-word); one that begins with a dash as --delimiter=TEXT
    #[arg(long, value_name = "TEXT", default_value = " ")]
    pub(super) delimiter: String,
    /// Solved examples in front of every question (choices, schema, last-word): the last N records of --data, which are not
    /// scored then
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole(0..=MOST))]
    pub(super) shots: usize,
    /// Take the solved examples from the beginning of this file instead
    #[arg(long, value_name = "FILE")]
    pub(super) shots_from: Option<PathBuf>,
    /// Run the same with exact attention too
    #[arg(long, value_name = "KERNEL")]
    pub(super) compare: Option<Baseline>,
    /// Log of examples that are done; begun if there is none, continued if there is
    #[arg(long, value_name = "FILE")]
    pub(super) resume: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: CommonArgs,
    #[command(flatten)]
    pub(super) kernel: KernelArgs,
}

const FIELDS: &str = "\
Records, one JSON object a line:
  choices    query, choices, gold: which choice is the most probable continuation
  schema     context_options, continuation, gold: which context makes the continuation most probable
  last-word  context, continuation; or (GSM8K) context, chain_of_thought, answer: would greedy decoding write it

With --json accuracy, f1 and exact_match are in 0..1, each with its standard error. With --compare dense, kl and
top1_agreement are over the scored positions (squad: every token that exact attention generates, read by both), and
flips counts the examples whose prediction differs. Nothing is decoded in choices, schema, last-word and perplexity: there --phases prefill
is the same as both.";
