//! What can be said to `generate`.

use crate::args::{Baseline, SamplingArgs, whole};
use crate::{CommonArgs, KernelArgs, MemoryArgs, ModelArgs};

/// Continue a text with delta attention, and say what that saves
///
/// Without --model, --prompt, --chat and --kv-budget it is a demonstration: the embedded model continues a tale on the compact
/// store with the most probable tokens, and the same is done with dense attention for comparison.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Text to continue, or with --chat the question; one that begins with a dash as --prompt=TEXT [default: the beginning of a story]
    #[arg(long, value_name = "TEXT")]
    pub(super) prompt: Option<String>,
    /// Put the prompt through the model's chat template
    #[arg(long)]
    pub(super) chat: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole(1..=u32::MAX))]
    pub(super) max_tokens: u32,
    /// Prompt-lookup decoding: draft tokens from earlier text and check several at once. The same text, faster where it repeats itself
    #[arg(long)]
    pub(super) prompt_lookup: bool,
    /// Run the same prompt with exact attention too, and show where the texts part
    #[arg(long, value_name = "KERNEL")]
    pub(super) compare: Option<Baseline>,
    /// Say all that was measured, not only what it comes to
    #[arg(long)]
    pub(super) verbose: bool,
    #[command(flatten)]
    pub(super) common: CommonArgs,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    #[command(flatten)]
    pub(super) kernel: KernelArgs,
    #[command(flatten)]
    pub(super) memory: MemoryArgs,
}

impl Args {
    /// Whether nothing is asked for in particular.
    pub(super) fn demonstrates(&self) -> bool {
        self.model.path().is_none() && self.prompt.is_none() && !self.chat && !self.memory.is_limited()
    }
}
