//! Our model, in a session.

use std::sync::Arc;

use anyhow::Context;
use deltallm::models::{Model, Session};
use deltallm::{KernelKind, KvStore, Precision};

use super::engine::Engine;
use crate::{KernelArgs, KernelChoice};

/// A session that is made anew for every prompt.
pub(super) struct Ours {
    model: Arc<Model>,
    kernel: KernelChoice,
    session: Session,
    /// Tokens of the prompt.
    prompt: usize,
}

/// Attention settings as `generate` resolves them: with `profile`, or the model's built-in one, where it has one.
///
/// # Errors
/// For a precision that the kind of attention does not take, and for a profile that is not for this model.
pub(super) fn kernel(
    model: &Model,
    kind: KernelKind,
    store: KvStore,
    precision: Precision,
    profile: Option<&str>,
) -> anyhow::Result<KernelChoice> {
    let precision = precision.to_string();
    let kernel = ["--kernel", kind.name(), "--kv", store.name(), "--precision", &precision];
    let profile = profile.iter().flat_map(|profile| ["--profile", profile]);
    let settings = KernelArgs::parse(kernel.into_iter().chain(profile)).map_err(anyhow::Error::msg)?;
    settings.resolve(model)
}

impl Ours {
    /// An empty session.
    ///
    /// # Errors
    /// When a kernel cannot be made.
    pub(super) fn new(model: Arc<Model>, kernel: KernelChoice) -> anyhow::Result<Self> {
        let session = Session::new(model.clone(), |layer| kernel.make(layer))?;
        Ok(Self { model, kernel, session, prompt: 0 })
    }
}

impl Engine for Ours {
    fn clear(&mut self) -> anyhow::Result<()> {
        self.session = Session::new(self.model.clone(), |layer| self.kernel.make(layer))?;
        self.prompt = 0;
        Ok(())
    }

    fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Vec<f32>> {
        let logits = self.session.prefill(prompt).context("reading a prompt")?;
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
