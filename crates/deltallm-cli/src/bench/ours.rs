//! Our model, in a session.

use anyhow::Context;
use clap::Parser;
use deltallm::models::{Model, Session};

use super::engine::Engine;
use crate::{KernelArgs, KernelChoice};

/// The command line of an attention kernel alone.
#[derive(Debug, Parser)]
struct KernelLine {
    #[command(flatten)]
    kernel: KernelArgs,
}

/// A session that is made anew for every prompt.
pub(super) struct Ours<'m> {
    model: &'m Model,
    kernel: KernelChoice,
    session: Session<'m>,
    /// Tokens of the prompt.
    prompt: usize,
}

/// Attention settings as `generate` resolves them: with `profile`, or the model's built-in one, where it has one.
///
/// # Errors
/// For a store or a precision that does not exist, or that the kind of attention does not take; for a profile that is not
/// for this model.
pub(super) fn kernel(
    model: &Model,
    kind: &str,
    store: &str,
    precision: &str,
    profile: Option<&str>,
) -> anyhow::Result<KernelChoice> {
    let mut line = vec!["kernel", "--kernel", kind, "--kv", store, "--precision", precision];
    line.extend(profile.iter().flat_map(|profile| ["--profile", profile]));
    // The parser's message spans lines: the first says what is wrong.
    let line = KernelLine::try_parse_from(line)
        .map_err(|error| anyhow::anyhow!("{}", error.to_string().lines().next().unwrap_or_default()))?;
    line.kernel.resolve(model)
}

impl<'m> Ours<'m> {
    /// An empty session.
    ///
    /// # Errors
    /// When a kernel cannot be made.
    pub(super) fn new(model: &'m Model, kernel: KernelChoice) -> anyhow::Result<Self> {
        let session = Session::new(model, |layer| kernel.make(layer))?;
        Ok(Self { model, kernel, session, prompt: 0 })
    }
}

impl Engine for Ours<'_> {
    fn clear(&mut self) -> anyhow::Result<()> {
        self.session = Session::new(self.model, |layer| self.kernel.make(layer))?;
        self.prompt = 0;
        Ok(())
    }

    fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Vec<f32>> {
        let logits = self.session.prefill(prompt, &mut |_| {}).context("reading a prompt")?;
        self.prompt = prompt.len();
        Ok(logits.to_vec())
    }

    fn decode(&mut self, token: u32) -> anyhow::Result<()> {
        self.session.decode(token)?;
        Ok(())
    }

    fn rewind(&mut self) -> anyhow::Result<()> {
        Ok(self.session.rewind(self.prompt)?)
    }

    fn cache_bytes(&self) -> Option<usize> {
        Some(self.session.footprint().total())
    }
}
