//! Approximate attention while a prompt is read, exact attention afterwards.

use deltallm::core::{HeadSparsity, SnapshotError, SnapshotReader, SnapshotWriter};
use deltallm::{
    AttentionError, AttentionKernel, DenseAttention, Footprint, HeadsView, HeadsViewMut, MemoryBudget,
    SparsityStats,
};

/// The paper's prefill-only mode: a prompt is attended by another kernel, tokens after it by exact attention, which has
/// followed along. Both keep a cache of their own.
///
/// A prompt is what [`begin_prompt`](AttentionKernel::begin_prompt) has announced; without that, a call of more than one
/// token. Once tokens have been decoded the other kernel has missed them: a further prompt is read exactly.
pub struct PrefillOnly {
    dense: Box<dyn AttentionKernel>,
    prefill: Box<dyn AttentionKernel>,
    /// Where an announced prompt ends.
    prompt_end: usize,
    /// What exact attention computes during a prompt is not used.
    scratch: Vec<f32>,
}

impl PrefillOnly {
    /// Two empty kernels of the same shape as one.
    pub fn new(dense: DenseAttention, prefill: Box<dyn AttentionKernel>) -> Self {
        Self { dense: Box::new(dense), prefill, prompt_end: 0, scratch: Vec::new() }
    }

    /// Whether the other kernel attends a call of so many queries that would come now.
    fn in_prompt(&self, queries: usize) -> bool {
        let first = self.dense.len();
        (first < self.prompt_end || queries > 1) && self.prefill.len() >= first
    }
}

impl AttentionKernel for PrefillOnly {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let first = self.dense.len();
        if !self.in_prompt(q.tokens()) {
            return self.dense.forward_heads(q, k, v, out);
        }
        let shape = [q.tokens(), q.heads(), q.head_dim()];
        self.scratch.resize(shape.iter().product(), 0.0);
        self.dense.forward_heads(q, k, v, HeadsViewMut::new(&mut self.scratch, shape)?)?;
        let result = self.prefill.forward_heads(q, k, v, out);
        if result.is_err() {
            self.dense.truncate(first)?;
        }
        result
    }

    fn begin_prompt(&mut self, tokens: usize) {
        self.prompt_end = self.len().saturating_add(tokens);
        self.prefill.begin_prompt(tokens);
    }

    fn len(&self) -> usize {
        self.dense.len()
    }

    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        self.dense.check_truncate(len)?;
        self.prefill.check_truncate(len.min(self.prefill.len()))
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.check_truncate(len)?;
        self.dense.truncate(len)?;
        self.prompt_end = self.prompt_end.min(len);
        self.prefill.truncate(len.min(self.prefill.len()))
    }

    fn begin_step(&mut self) {
        self.dense.begin_step();
        self.prefill.begin_step();
    }

    fn commit_step(&mut self) {
        self.dense.commit_step();
        self.prefill.commit_step();
    }

    /// A kernel that had missed tokens before the step has not seen it either.
    fn undo_step(&mut self, len: usize) -> Result<(), AttentionError> {
        self.dense.undo_step(len)?;
        self.prefill.undo_step(len.min(self.prefill.len()))
    }

    /// Of both caches.
    fn footprint(&self) -> Footprint {
        let mut sum = self.dense.footprint();
        sum += self.prefill.footprint();
        sum
    }

    /// The prompt's keys, and all pairs: those of later tokens are exact.
    fn stats(&self) -> SparsityStats {
        let (dense, prefill) = (self.dense.stats(), self.prefill.stats());
        let head = |(dense, prefill): (&HeadSparsity, &HeadSparsity)| HeadSparsity {
            pairs: dense.pairs,
            exact_pairs: dense.pairs.saturating_sub(prefill.pairs.saturating_sub(prefill.exact_pairs)),
            ..*prefill
        };
        SparsityStats::new(dense.heads().iter().zip(prefill.heads()).map(head).collect())
    }

    fn detach(&mut self) -> Result<(), AttentionError> {
        self.dense.detach()?;
        self.prefill.detach()
    }

    fn fork(&self) -> Option<Box<dyn AttentionKernel>> {
        let (dense, prefill) = (self.dense.fork()?, self.prefill.fork()?);
        Some(Box::new(Self { dense, prefill, prompt_end: self.prompt_end, scratch: Vec::new() }))
    }

    /// Both caches.
    fn save(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        writer.count(self.prompt_end);
        self.dense.save(writer)?;
        self.prefill.save(writer)
    }

    fn load(&mut self, reader: &mut SnapshotReader) -> Result<(), SnapshotError> {
        let prompt_end = reader.count("tokens", usize::MAX)?;
        self.dense.load(reader)?;
        let loaded = self.prefill.load(reader);
        if loaded.is_err() {
            // All tokens can always be cut off.
            let _ = self.dense.truncate(0);
        }
        self.prompt_end = loaded.map(|()| prompt_end)?;
        Ok(())
    }

    /// Of both caches, if the other kernel will see the tokens.
    fn growth(&self, tokens: usize) -> Option<usize> {
        let dense = self.dense.growth(tokens)?;
        let prefill = if self.in_prompt(tokens) { self.prefill.growth(tokens)? } else { 0 };
        Some(dense.saturating_add(prefill))
    }

    fn budget(&self) -> Option<&MemoryBudget> {
        self.dense.budget()
    }

    /// Both caches. One of them may hold a number that does not fit in its narrower type: the other is narrowed all the same.
    fn narrow(&mut self) -> Result<usize, AttentionError> {
        match (self.dense.narrow(), self.prefill.narrow()) {
            (Ok(dense), Ok(prefill)) => Ok(dense + prefill),
            (Ok(freed), Err(_)) | (Err(_), Ok(freed)) if freed > 0 => Ok(freed),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltallm::{
        AttentionOptions, AttentionShape, ExactWindow, HybridAttention, HybridConfig, Isa, KvStore,
        ThresholdPolicy,
    };
    use ndarray::{Array3, Axis, s};

    const TOKENS: usize = 24;

    fn shape() -> AttentionShape {
        AttentionShape::new(4, 2, 8).unwrap()
    }

    fn options() -> AttentionOptions {
        AttentionOptions::default().isa(Isa::from_env().unwrap()).store(KvStore::F32)
    }

    fn hybrid_config() -> HybridConfig {
        HybridConfig::new(ThresholdPolicy::Uniform(0.9)).exact_window(ExactWindow::Sliding(2)).exact_sinks(1)
    }

    fn hybrid() -> HybridAttention {
        HybridAttention::new(shape(), hybrid_config().options(options())).unwrap()
    }

    fn dense() -> DenseAttention {
        DenseAttention::new(shape(), options()).unwrap()
    }

    fn input(heads: usize, phase: f32) -> Array3<f32> {
        Array3::from_shape_fn((TOKENS, heads, 8), |(t, h, c)| {
            ((t * 7 + h * 3 + c * 5) as f32 * 0.37 + phase).sin() * 1.5
        })
    }

    /// The outputs of a prompt in two calls and of token-by-token decoding after it.
    fn outputs(kernel: &mut dyn AttentionKernel, prompt: usize) -> Array3<f32> {
        let (q, k, v) = (input(4, 0.1), input(2, 0.2), input(2, 0.3));
        let mut out = Array3::zeros(q.dim());
        kernel.begin_prompt(prompt);
        let mut start = 0;
        let calls = [prompt - 1, 1].into_iter().chain(std::iter::repeat_n(1, TOKENS - prompt));
        for tokens in calls {
            let part = s![start..start + tokens, .., ..];
            kernel.forward(q.slice(part), k.slice(part), v.slice(part), out.slice_mut(part)).unwrap();
            start += tokens;
        }
        out
    }

    #[test]
    fn the_prompt_is_hybrid_and_the_rest_exact() {
        let prompt = 16;
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        let out = outputs(&mut mixed, prompt);
        let (exact, approximate) = (outputs(&mut dense(), prompt), outputs(&mut hybrid(), prompt));
        // The prompt's last token came in a call of its own and is still part of it.
        assert_eq!(out.slice(s![..prompt, .., ..]), approximate.slice(s![..prompt, .., ..]));
        assert_eq!(out.slice(s![prompt.., .., ..]), exact.slice(s![prompt.., .., ..]));
        assert_ne!(exact.slice(s![prompt.., .., ..]), approximate.slice(s![prompt.., .., ..]));
    }

    #[test]
    fn both_caches_count_and_decoded_pairs_are_exact() {
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        outputs(&mut mixed, 16);
        let (exact, mut prompt_only) = (dense(), hybrid());
        let mut exact = exact;
        outputs(&mut exact, 16);
        let (q, k, v) = (input(4, 0.1), input(2, 0.2), input(2, 0.3));
        let part = s![..16, .., ..];
        let mut out = Array3::zeros((16, 4, 8));
        prompt_only.forward(q.slice(part), k.slice(part), v.slice(part), out.view_mut()).unwrap();
        assert_eq!(mixed.footprint().total(), exact.footprint().total() + prompt_only.footprint().total());
        let (total, prompt) = (mixed.stats().total(), prompt_only.stats().total());
        assert_eq!(total.pairs, exact.stats().total().pairs);
        assert_eq!(total.pairs - total.exact_pairs, prompt.pairs - prompt.exact_pairs);
        assert_eq!(total.zero_fraction(), prompt.zero_fraction());
    }

    #[test]
    fn what_a_call_charges_is_known_and_both_caches_narrow() {
        let budget = MemoryBudget::unlimited();
        let options = options().budget(budget.clone());
        let hybrid = HybridAttention::new(shape(), hybrid_config().options(options.clone())).unwrap();
        let mut mixed =
            PrefillOnly::new(DenseAttention::new(shape(), options.clone()).unwrap(), Box::new(hybrid));
        let (q, k) = (input(4, 0.1), input(2, 0.2));
        let mut out = Array3::zeros(q.dim());
        // The prompt goes to both, the token after it to one.
        for (part, both) in [(s![..23, .., ..], true), (s![23.., .., ..], false)] {
            let (used, tokens) = (budget.used(), k.slice(part).len_of(Axis(0)));
            let growth = mixed.growth(tokens).unwrap();
            assert_eq!(Some(growth) == mixed.dense.growth(tokens), !both);
            mixed.forward(q.slice(part), k.slice(part), k.slice(part), out.slice_mut(part)).unwrap();
            assert!(budget.used() - used <= growth);
        }
        let held = (budget.used(), mixed.dense.footprint().total(), mixed.prefill.footprint().total());
        let freed = mixed.narrow().unwrap();
        assert_eq!(budget.used(), held.0 - freed);
        assert!(mixed.dense.footprint().total() < held.1 && mixed.prefill.footprint().total() < held.2);
    }

    #[test]
    fn one_cache_that_cannot_be_narrowed_does_not_keep_the_other_from_it() {
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        let (q, mut k) = (input(4, 0.1), input(2, 0.2));
        let mut out = Array3::zeros(q.dim());
        let (prompt, last) = (s![..23, .., ..], s![23.., .., ..]);
        k[[23, 1, 7]] = 1e6; // too large for f16, and in the exact cache alone
        for part in [prompt, last] {
            mixed.forward(q.slice(part), k.slice(part), k.slice(part), out.slice_mut(part)).unwrap();
        }
        assert!(mixed.narrow().unwrap() > 0); // f16 in the other
        assert!(mixed.narrow().unwrap() > 0); // compact in the other
        assert!(mixed.narrow().is_err());
    }

    #[test]
    fn truncation_brings_the_prompt_back_into_step() {
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        outputs(&mut mixed, 16);
        assert_eq!((mixed.len(), mixed.prefill.len()), (TOKENS, 16));
        // Behind the prompt: the other kernel has missed tokens, so a second prompt is read exactly.
        mixed.truncate(20).unwrap();
        assert_eq!((mixed.len(), mixed.prefill.len()), (20, 16));
        let (q, k) = (input(4, 0.1), input(2, 0.2));
        let part = s![20..24, .., ..];
        let mut out = Array3::zeros((4, 4, 8));
        mixed.forward(q.slice(part), k.slice(part), k.slice(part), out.view_mut()).unwrap();
        assert_eq!((mixed.len(), mixed.prefill.len()), (24, 16));
        mixed.truncate(10).unwrap();
        mixed.forward(q.slice(part), k.slice(part), k.slice(part), out.view_mut()).unwrap();
        assert_eq!((mixed.len(), mixed.prefill.len()), (14, 14));
        assert!(mixed.truncate(15).is_err());
    }

    /// The window's page would be gone if the step had let go of it.
    #[test]
    fn a_step_that_is_taken_back_leaves_no_trace() {
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        let (q, k, v) = (input(4, 0.1), input(2, 0.2), input(2, 0.3));
        let mut out = Array3::zeros((TOKENS, 4, 8));
        mixed.begin_prompt(TOKENS);
        let (first, second) = (s![..12, .., ..], s![12.., .., ..]);
        mixed.forward(q.slice(first), k.slice(first), v.slice(first), out.slice_mut(first)).unwrap();
        let held = mixed.footprint();
        mixed.begin_step();
        let mut answers = [0; 2].map(|_| Array3::zeros((TOKENS - 12, 4, 8)));
        let [once, again] = &mut answers;
        mixed.forward(q.slice(second), k.slice(second), v.slice(second), once.view_mut()).unwrap();
        mixed.undo_step(12).unwrap();
        assert_eq!((mixed.len(), mixed.prefill.len(), mixed.footprint().window), (12, 12, held.window));
        mixed.begin_step();
        mixed.forward(q.slice(second), k.slice(second), v.slice(second), again.view_mut()).unwrap();
        mixed.commit_step();
        assert_eq!(once, again);
        assert_eq!((mixed.len(), mixed.prefill.len()), (TOKENS, TOKENS));
    }

    #[test]
    fn a_refused_token_is_in_neither_cache() {
        let mut mixed = PrefillOnly::new(dense(), Box::new(hybrid()));
        let (q, mut k, v) = (input(4, 0.1), input(2, 0.2), input(2, 0.3));
        k[[3, 0, 0]] = f32::NAN;
        let mut out = Array3::zeros(q.dim());
        assert!(mixed.forward(q.view(), k.view(), v.view(), out.view_mut()).is_err());
        assert_eq!((mixed.len(), mixed.prefill.len()), (0, 0));
    }
}
