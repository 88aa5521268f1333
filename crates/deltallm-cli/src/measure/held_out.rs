//! Text on which settings are measured against dense attention.

use deltallm::attn::HeldOut;
use deltallm::models::{Model, Session};
use deltallm::{AttentionError, AttentionKernel, Footprint, SparsityStats};
use ndarray::Array2;

use crate::{Comparison, Perplexity, TokenScore, score_rows};

/// Makes the kernel of a layer.
pub type MakeKernel<'a> = dyn Fn(usize) -> Result<Box<dyn AttentionKernel>, AttentionError> + 'a;

/// Windows of text with what dense attention predicts for them.
pub struct HeldOutText {
    windows: Vec<Window>,
    dense: Perplexity,
    footprint: Footprint,
}

struct Window {
    tokens: Vec<u32>,
    /// `[tokens, vocab_size]`.
    logits: Array2<f32>,
    scores: Vec<TokenScore>,
}

/// What settings cost on a held-out text.
pub struct Measured {
    /// Over all windows and layers.
    pub total: HeldOut,
    /// Per layer.
    pub layers: Vec<SparsityStats>,
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
    pub fn new(model: &Model, windows: &[&[u32]], dense: &MakeKernel) -> anyhow::Result<Self> {
        let mut text =
            Self { windows: Vec::new(), dense: Perplexity::default(), footprint: Footprint::default() };
        for tokens in windows {
            let (logits, session) = logits(model, tokens, dense)?;
            text.footprint += session.footprint();
            let scores = score_rows(logits.view(), &tokens[1..]);
            text.dense.add(&scores);
            text.windows.push(Window { tokens: tokens.to_vec(), logits, scores });
        }
        Ok(text)
    }

    /// Tokens of the longest window.
    pub fn context(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).max().unwrap_or(0)
    }

    /// Perplexity of dense attention.
    pub fn perplexity(&self) -> f64 {
        self.dense.value()
    }

    /// Bytes of all layers' dense caches, summed over the windows.
    pub fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Compares the kernels of `make` with dense attention.
    ///
    /// # Errors
    /// A failing model.
    pub fn measure(&self, model: &Model, make: &MakeKernel) -> anyhow::Result<Measured> {
        let (mut perplexity, mut comparison) = (Perplexity::default(), Comparison::default());
        let mut layers = vec![SparsityStats::default(); model.config().layers];
        let mut footprint = Footprint::default();
        for window in &self.windows {
            let (logits, session) = logits(model, &window.tokens, make)?;
            let scores = score_rows(logits.view(), &window.tokens[1..]);
            perplexity.add(&scores);
            perplexity.sparsity += session.stats().total();
            footprint += session.footprint();
            comparison.add((window.logits.view(), &window.scores), (logits.view(), &scores));
            for (sum, kernel) in layers.iter_mut().zip(session.kernels()) {
                sum.merge(&kernel.stats())?;
            }
        }
        let sparsity = perplexity.sparsity;
        let total = HeldOut {
            tokens: perplexity.tokens(),
            zero_fraction: sparsity.zero_fraction(),
            sparsity: sparsity.sparsity(),
            values_skipped: sparsity.values_skipped(),
            perplexity_dense: self.dense.value(),
            perplexity_change: perplexity.value() / self.dense.value() - 1.0,
            kl: comparison.kl(),
            top1_agreement: comparison.top1_agreement(),
        };
        let log_likelihood_difference = comparison.log_likelihood_difference();
        Ok(Measured { total, layers, log_likelihood_difference, footprint })
    }
}

/// The logits of all tokens, `[tokens, vocab_size]`, and the session that has read them.
fn logits<'m>(
    model: &'m Model,
    tokens: &[u32],
    make: &MakeKernel,
) -> anyhow::Result<(Array2<f32>, Session<'m>)> {
    let mut session = Session::new(model, make)?;
    session.set_chunk(tokens.len());
    let mut all = Array2::default((0, 0));
    session.score(tokens, &mut |_, logits| all = logits)?;
    Ok((all, session))
}
