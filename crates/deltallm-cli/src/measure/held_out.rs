//! Text on which settings are measured against dense attention.

use std::sync::Arc;

use deltallm::calibration::{self, Score};
use deltallm::models::{Model, Session};
use deltallm::{AttentionError, AttentionKernel, Footprint};
use ndarray::Array2;

/// Makes the kernel of a layer.
pub type MakeKernel<'a> = dyn Fn(usize) -> Result<Box<dyn AttentionKernel>, AttentionError> + 'a;

/// Windows of text with what dense attention predicts for them, and the bytes that it needs.
pub struct HeldOutText {
    text: calibration::HeldOutText,
    footprint: Footprint,
}

/// What settings cost on a held-out text.
pub struct Measured {
    /// Over all windows.
    pub score: Score,
    /// Mean difference of the log-likelihood of a token to dense attention, nats, and its standard error.
    pub log_likelihood_difference: (f64, f64),
    /// Bytes of all layers' caches, summed over the windows.
    pub footprint: Footprint,
}

impl HeldOutText {
    /// Runs dense attention over the windows. Their logits stay in memory: `vocab_size` numbers a token.
    ///
    /// # Errors
    /// A failing model.
    pub fn new(model: &Arc<Model>, windows: &[Vec<u32>], dense: &MakeKernel) -> anyhow::Result<Self> {
        let (mut text, mut footprint) = (calibration::HeldOutText::new(), Footprint::default());
        for tokens in windows {
            let (logits, session) = logits(model, tokens, dense)?;
            footprint += session.footprint();
            text.add(tokens, logits)?;
        }
        Ok(Self { text, footprint })
    }

    /// Perplexity of dense attention.
    pub fn perplexity(&self) -> f64 {
        self.text.perplexity()
    }

    /// Bytes of all layers' dense caches, summed over the windows.
    pub fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Compares the kernels of `make` with dense attention.
    ///
    /// # Errors
    /// A failing model.
    pub fn measure(&self, model: &Arc<Model>, make: &MakeKernel) -> anyhow::Result<Measured> {
        let mut footprint = Footprint::default();
        let (score, comparison) = self.text.compare(|tokens| {
            let (logits, session) = logits(model, tokens, make)?;
            footprint += session.footprint();
            anyhow::Ok((logits, session.kernels().iter().map(|kernel| kernel.stats()).collect()))
        })?;
        let log_likelihood_difference = comparison.log_likelihood_difference();
        Ok(Measured { score, log_likelihood_difference, footprint })
    }
}

/// The logits of all tokens, `[tokens, vocab_size]`, and the session that has read them.
fn logits(model: &Arc<Model>, tokens: &[u32], make: &MakeKernel) -> anyhow::Result<(Array2<f32>, Session)> {
    let mut session = Session::new(model.clone(), make)?;
    session.set_chunk(tokens.len());
    let mut all = Array2::default((0, 0));
    session.score(tokens, |_, logits| all = logits)?;
    Ok((all, session))
}
