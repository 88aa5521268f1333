//! Reading tokens that may not follow, so that each of them that does costs no pass over the weights of its own.

use deltallm_attn::{
    AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper, forward_one_by_one,
};
use ndarray::Array1;

use super::{
    guesses::{Ahead, Guesses},
    sequence::Session,
};
use crate::{LogitRows, ModelError};

impl Session {
    /// [`decode`](Self::decode) that reads, in the same pass over the weights, what `guess` thinks will follow the tokens so far. If it does,
    /// these tokens are answered at once when their turn comes; the first that does not takes the rest back. The answers are those of
    /// `decode`, bit for bit.
    ///
    /// `guess` is not asked while there are guesses left, and not at all where weights are f32, f16 or bf16: these are added up in another
    /// order for several tokens than for one.
    ///
    /// ```
    /// use deltallm_attn::KernelSpec;
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf")?;
    /// let mut session = Session::with_spec(Model::load(&file)?, &KernelSpec::default())?;
    /// session.prefill(&[1, 2, 3])?;
    /// session.decode_guessing(4, |_| vec![5, 6])?; // reads 4, 5 and 6
    /// session.decode(5)?; // has been read
    /// session.decode(7)?; // takes 6 back
    /// assert_eq!(session.tokens(), [1, 2, 3, 4, 5, 7]);
    /// assert_eq!((session.guesses().made, session.guesses().right), (2, 1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), for guesses outside the vocabulary too. Guesses for which there is no room are left out.
    pub fn decode_guessing(
        &mut self,
        token: u32,
        guess: impl FnOnce(&[u32]) -> Vec<u32>,
    ) -> Result<Array1<f32>, ModelError> {
        if let Some(logits) = self.accept(token) {
            return Ok(logits);
        }
        self.take_back_guesses()?;
        self.model.check(&[token], &self.kernels)?;
        if !self.model.weights().treats_rows_alike() {
            return self.decode(token);
        }
        let known = [&self.tokens[..], &[token]].concat();
        let mut guesses = guess(&known);
        guesses.truncate(self.model.config().context_length - known.len());
        guesses.insert(0, token);
        self.model.check(&guesses, &self.kernels)?;
        match guesses.len() {
            1 => self.decode(token),
            // What fails may be the guesses: for want of memory, or because a store cannot hold what comes of them.
            _ => self.read_ahead(guesses).or_else(|_| self.decode(token)),
        }
    }

    /// All that has been guessed so far.
    pub fn guesses(&self) -> Guesses {
        self.guesses
    }

    /// The logits after `token`, if it was guessed that it follows.
    pub(super) fn accept(&mut self, token: u32) -> Option<Array1<f32>> {
        let Ahead { guesses, logits, right } = self.ahead.as_mut()?;
        if guesses.get(*right) != Some(&token) {
            return None;
        }
        *right += 1;
        self.guesses.right += 1;
        self.tokens.push(token);
        Some(logits.row(*right).to_owned())
    }

    /// Forgets the guesses that have not followed.
    pub(super) fn take_back_guesses(&mut self) -> Result<(), ModelError> {
        if self.ahead.is_none() {
            return Ok(());
        }
        for (layer, kernel) in self.kernels.iter_mut().enumerate() {
            kernel.truncate(self.tokens.len()).map_err(|source| ModelError::Attention { layer, source })?;
            kernel.commit_step();
        }
        self.ahead = None;
        Ok(())
    }

    /// Appends the first of these tokens, and to the caches alone as many of the others as there is room for. The step of the caches stays open.
    fn read_ahead(&mut self, mut guesses: Vec<u32>) -> Result<Array1<f32>, ModelError> {
        guesses.truncate(self.make_room(guesses.len())?);
        let mut kernels: Vec<_> = self.kernels.iter_mut().map(|kernel| OneByOne(&mut **kernel)).collect();
        let logits = self.model.forward(&guesses, &mut kernels, LogitRows::All)?;
        self.tokens.push(guesses.remove(0));
        self.guesses.made += guesses.len();
        let first = logits.row(0).to_owned();
        self.ahead = Some(Ahead { guesses, logits, right: 0 });
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
