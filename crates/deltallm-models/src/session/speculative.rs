//! Speculative decoding: a draft is read in the same pass over the weights, and as much of it accepted as follows.

use deltallm_attn::{
    AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper, forward_one_by_one,
};
use ndarray::Array1;

use super::{
    draft::{Draft, SpeculationStats},
    sequence::Session,
};
use crate::{LogitRows, ModelError};

impl Session {
    /// Speculative decoding: [`decode`](Self::decode) that also reads, in the same pass over the weights, what `draft` thinks will follow
    /// the tokens so far. A drafted token that does follow is accepted: its logits are there at once when its turn comes. The first that
    /// does not discards the rest of the draft. The answers are those of `decode`, bit for bit.
    ///
    /// Where drafts come from is up to the caller: a [`PromptLookup`](crate::PromptLookup) finds them in the text, a smaller model may write
    /// them. `draft` is not asked while there are drafted tokens left, and not at all where weights are f32, f16 or bf16: these are added up
    /// in another order for several tokens than for one.
    ///
    /// ```
    /// use deltallm_attn::KernelSpec;
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf")?;
    /// let mut session = Session::with_spec(Model::load(&file)?, &KernelSpec::default())?;
    /// session.prefill(&[1, 2, 3])?;
    /// session.decode_speculative(4, |_| vec![5, 6])?; // reads 4, 5 and 6
    /// session.decode(5)?; // accepted: has been read
    /// session.decode(7)?; // discards 6
    /// assert_eq!(session.tokens(), [1, 2, 3, 4, 5, 7]);
    /// let stats = session.speculation_stats();
    /// assert_eq!((stats.drafted, stats.accepted), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), for drafted tokens outside the vocabulary too. Those for which there is no room are left out.
    pub fn decode_speculative(
        &mut self,
        token: u32,
        draft: impl FnOnce(&[u32]) -> Vec<u32>,
    ) -> Result<Array1<f32>, ModelError> {
        if let Some(logits) = self.take_accepted(token) {
            return Ok(logits);
        }
        self.discard_draft()?;
        self.model.check(&[token], &self.kernels)?;
        if !self.model.weights().treats_rows_alike() {
            return self.decode(token);
        }
        let known = [&self.tokens[..], &[token]].concat();
        let mut tokens = draft(&known);
        tokens.truncate(self.model.config().context_length.saturating_sub(known.len()));
        tokens.insert(0, token);
        self.model.check(&tokens, &self.kernels)?;
        match tokens.len() {
            1 => self.decode(token),
            // What fails may be the draft: for want of memory, or because a store cannot hold what comes of it.
            _ => self.read_draft(tokens).or_else(|_| self.decode(token)),
        }
    }

    /// All that has been drafted and accepted so far.
    pub fn speculation_stats(&self) -> SpeculationStats {
        self.speculation
    }

    /// Appends `token` if it is the next of the draft, and answers the logits after it.
    pub(super) fn take_accepted(&mut self, token: u32) -> Option<Array1<f32>> {
        let Draft { tokens, logits, accepted } = self.draft.as_mut()?;
        if tokens.get(*accepted) != Some(&token) {
            return None;
        }
        *accepted += 1;
        self.speculation.accepted += 1;
        self.tokens.push(token);
        Some(logits.row(*accepted).to_owned())
    }

    /// Takes back, from the caches, the drafted tokens that have not been accepted.
    pub(super) fn discard_draft(&mut self) -> Result<(), ModelError> {
        if self.draft.is_none() {
            return Ok(());
        }
        self.cut_caches(self.tokens.len())?;
        self.kernels.iter_mut().for_each(|kernel| kernel.commit_step());
        self.draft = None;
        Ok(())
    }

    /// Appends the first of these tokens, and to the caches alone as many of the others as there is room for. The step of the caches stays open.
    fn read_draft(&mut self, mut tokens: Vec<u32>) -> Result<Array1<f32>, ModelError> {
        tokens.truncate(self.make_room(tokens.len())?);
        let mut kernels: Vec<_> = self.kernels.iter_mut().map(|kernel| OneByOne(&mut **kernel)).collect();
        let logits = self.model.forward(&tokens, &mut kernels, LogitRows::All)?;
        self.tokens.push(tokens.remove(0));
        self.speculation.drafted += tokens.len();
        let first = logits.row(0).to_owned();
        self.draft = Some(Draft { tokens, logits, accepted: 0 });
        Ok(first)
    }
}

/// A kernel whose calls attend token by token, as decoding does, and leave their step open, so that any of the tokens can be taken back.
struct OneByOne<'a>(&'a mut dyn AttentionKernel);

impl<'a> KernelWrapper for OneByOne<'a> {
    type Inner = dyn AttentionKernel + 'a;

    fn inner(&self) -> &Self::Inner {
        self.0
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        self.0
    }

    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        forward_one_by_one(&mut *self.0, q, k, v, out)
    }

    fn commit(&mut self) {}
}
