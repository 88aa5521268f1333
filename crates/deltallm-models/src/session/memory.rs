//! What happens when the memory budget ends: smaller chunks, narrower stores, or an error.

use deltallm_attn::{AtLimit, MemoryBudget};
use deltallm_core::CoreError;

use super::sequence::{Narrowed, Session};
use crate::ModelError;

impl Session {
    /// Says what to do when `budget`, the one that all kernels charge, does not cover the next call of the model. With
    /// [`AtLimit::NarrowStore`] that is first smaller chunks in prefill, and then a narrower store for all layers, as often
    /// as it helps. Only then the error comes out that [`AtLimit::Error`] (and a session that has not been told) gives at
    /// once.
    ///
    /// This is settled before the model is called, so a token that does not fit costs nothing, not even the exact
    /// copies of a hybrid window. It takes kernels that know what a call charges: one whose
    /// [`growth`](deltallm_attn::AttentionKernel::growth) is `None` makes the call answer [`ModelError::UnknownGrowth`], because it
    /// might use up the budget at any token. What has been narrowed stays so, also after [`rewind`](Self::rewind).
    ///
    /// ```
    /// use deltallm_attn::{AtLimit, KernelContext, KernelKind, KernelSpec, KvStore, MemoryBudget};
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let model = Model::load(&file)?;
    /// let budget = MemoryBudget::new(80_000);
    /// let context = model.kernel_context().budget(budget.clone());
    /// let spec = KernelSpec::default().kernel(KernelKind::Dense).store(KvStore::F32);
    /// let mut session = Session::new(model, |layer| spec.build(layer, &context))?;
    /// session.limit_memory(budget.clone(), AtLimit::NarrowStore)?;
    /// session.prefill(&[1; 70])?; // two pages a layer: in f32 that would be twice the budget
    /// assert!(budget.used() <= 80_000);
    /// assert_eq!(session.narrowed().times, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ModelError::OtherBudget`] for a budget that is not the one of every kernel (or a clone of it), as far as kernels
    /// [know](deltallm_attn::AttentionKernel::budget) theirs; nothing has changed then.
    pub fn limit_memory(&mut self, budget: MemoryBudget, at_limit: AtLimit) -> Result<(), ModelError> {
        let mut budgets = self.kernels.iter().map(|kernel| kernel.budget());
        if let Some(layer) = budgets.position(|own| own.is_some_and(|own| !own.is_shared_with(&budget))) {
            return Err(ModelError::OtherBudget { layer });
        }
        self.limit = Some((budget, at_limit));
        Ok(())
    }

    /// What has been done so far to stay within the budget.
    pub fn narrowed(&self) -> Narrowed {
        self.narrowed
    }

    /// Of at most `most` tokens, how many the next call of the model may have; narrows the caches where not even one
    /// fits.
    pub(super) fn make_room(&mut self, most: usize) -> Result<usize, ModelError> {
        loop {
            let mut tokens = most;
            let refused = loop {
                match Refusal::of([&*self], tokens)? {
                    None => return Ok(tokens),
                    Some(refused) if tokens == 1 => break refused,
                    Some(_) => tokens /= 2,
                }
            };
            if !self.narrow() {
                return Err(refused.error);
            }
        }
    }

    /// The same for one token of each session.
    pub(super) fn make_room_for_all(batch: &mut [(&mut Self, u32)]) -> Result<(), ModelError> {
        while let Some(Refusal { session, budget, error }) =
            Refusal::of(batch.iter().map(|(session, _)| &**session), 1)?
        {
            let (others, refused) = batch.split_at_mut(session);
            let sharing = |limit: &Option<(MemoryBudget, AtLimit)>| {
                limit.as_ref().is_some_and(|(own, _)| own.is_shared_with(&budget))
            };
            let mut helpers = refused.iter_mut().chain(others).filter(|(session, _)| sharing(&session.limit));
            if !helpers.any(|(session, _)| session.narrow()) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether caches are to be narrowed at the limit.
    pub(super) fn narrows(&self) -> bool {
        matches!(self.limit, Some((_, AtLimit::NarrowStore)))
    }

    /// Narrows the cache of every layer, if that is allowed, and says whether that gave anything back or makes the next token smaller.
    /// A layer that cannot be narrowed (its numbers may not fit in a narrower type) stays as it is.
    fn narrow(&mut self) -> bool {
        if !self.narrows() {
            return false;
        }
        let before = self.growth(1);
        let freed: usize = self.kernels.iter_mut().map(|kernel| kernel.narrow().unwrap_or_default()).sum();
        let helped = freed > 0 || self.growth(1) < before;
        self.narrowed.times += usize::from(helped);
        self.narrowed.bytes += freed;
        helped
    }

    /// Bytes that the next tokens take, as far as kernels know.
    fn growth(&self, tokens: usize) -> usize {
        self.kernels.iter().filter_map(|kernel| kernel.growth(tokens)).fold(0, usize::saturating_add)
    }
}

/// The first session without room for its next tokens beside those of the sessions before it.
struct Refusal {
    session: usize,
    budget: MemoryBudget,
    /// What the layer would answer at which the budget ends.
    error: ModelError,
}

impl Refusal {
    /// Whether there is one among these sessions, if any of them is to be told beforehand.
    ///
    /// # Errors
    /// [`ModelError::UnknownGrowth`] for a layer of those that cannot say.
    fn of<'a>(
        sessions: impl IntoIterator<Item = &'a Session> + Clone,
        tokens: usize,
    ) -> Result<Option<Self>, ModelError> {
        if !sessions.clone().into_iter().any(Session::narrows) {
            return Ok(None);
        }
        // What is left of each budget.
        let mut left: Vec<(&MemoryBudget, usize)> = Vec::new();
        for (session, member) in sessions.into_iter().enumerate() {
            for (layer, kernel) in member.kernels.iter().enumerate() {
                let requested = match kernel.growth(tokens) {
                    None if member.narrows() => return Err(ModelError::UnknownGrowth { layer }),
                    growth => growth.unwrap_or(0),
                };
                let told = member.limit.as_ref().map(|(budget, _)| budget);
                let Some(budget) = kernel.budget().or(told) else { continue };
                let known = left.iter().position(|(other, _)| other.is_shared_with(budget));
                let known = known.unwrap_or_else(|| {
                    left.push((budget, budget.available()));
                    left.len() - 1
                });
                let available = left[known].1;
                let Some(rest) = available.checked_sub(requested) else {
                    let limit = budget.limit().unwrap_or(usize::MAX);
                    let source = CoreError::BudgetExhausted { requested, available, limit }.into();
                    let error = ModelError::Attention { layer, source };
                    return Ok(Some(Self { session, budget: budget.clone(), error }));
                };
                left[known].1 = rest;
            }
        }
        Ok(None)
    }
}
