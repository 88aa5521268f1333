//! A kernel of your own in our models: the first tokens and a sliding window, nothing else (StreamingLLM, arXiv 2309.17453).

mod output;

use std::io::Write;
use std::sync::Arc;

use deltallm::models::{Model, ModelFile, Sampler, SamplerConfig, Session, Tokenizer};
use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, CoreError, DenseAttention,
};
use deltallm::{Footprint, HeadsView, HeadsViewMut, Isa, KvStore, SparsityStats, attend_dense};

/// A small model that comes with the program `deltallm`.
pub(crate) const MODEL: &[u8] = include_bytes!("../crates/deltallm-cli/assets/fairy-tales.gguf");

/// A query sees the first `sinks` tokens and the latest `window` (at least 1), all by their positions in the whole text.
pub(crate) struct Streaming {
    pub(crate) shape: AttentionShape,
    pub(crate) options: AttentionOptions,
    pub(crate) sinks: usize,
    pub(crate) window: usize,
    /// By position, keys and then values, `[2, kv_heads, head_dim]`: as many as it takes to undo the latest call.
    pub(crate) rows: Vec<(usize, Vec<f32>)>,
}

impl AttentionKernel for Streaming {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        mut out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let before = self.shape.check_call(&q, &k, &v, &out)?;
        let (first, heads, size) = (self.len(), k.heads(), k.head_dim());
        let row = |t| [k, v].into_iter().flat_map(move |x| (0..heads).flat_map(move |h| x.row(t, h)));
        self.rows.extend((0..k.tokens()).map(|t| (first + t, row(t).copied().collect())));
        let result = (0..q.tokens()).zip(first + before..).try_for_each(|(t, here)| {
            let sees = |p: usize| p <= here && (p < self.sinks || here - p < self.window);
            let seen: Vec<_> = self.rows.iter().filter(|row| sees(row.0)).map(|row| &row.1[..]).collect();
            let (data, shape, stride) = (seen.concat(), [seen.len(), heads, size], 2 * heads * size);
            let part = |start: usize| HeadsView::strided(&data[start..], shape, stride, size);
            let (q, k, v) = (q.slice(t..t + 1)?, part(0)?, part(stride / 2)?);
            attend_dense(self.shape, &self.options, q, k, v, out.slice(t..t + 1)?)
        });
        let (failed, from) = (result.is_err(), first.saturating_sub(self.window));
        self.rows.retain(|(p, _)| if failed { *p < first } else { *p < self.sinks || *p >= from });
        result
    }

    fn len(&self) -> usize {
        self.rows.last().map_or(0, |(p, _)| p + 1)
    }

    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        let oldest = self.rows.iter().map(|(p, _)| *p).find(|p| *p >= self.sinks).unwrap_or(0);
        if len > self.len() {
            return Err(CoreError::TruncateBeyondEnd { len: self.len(), got: len }.into());
        } else if len > self.sinks && oldest > self.sinks && len < oldest + self.window {
            return Err(AttentionError::Dropped { expected: oldest + self.window, got: len });
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.check_truncate(len)?;
        self.rows.retain(|(p, _)| *p < len);
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        Footprint { window: self.rows.iter().map(|row| 4 * row.1.len()).sum(), ..Footprint::default() }
    }

    fn stats(&self) -> SparsityStats {
        SparsityStats::default() // nothing is coded
    }

    fn begin_prompt(&mut self, _: usize) {} // what a query sees does not depend on the prompt

    fn growth(&self, _: usize) -> Option<usize> {
        None // there is no budget, so nobody must count on one
    }

    fn narrow(&mut self) -> Result<usize, AttentionError> {
        Ok(0) // f32 is the only store
    }
}

fn main() -> anyhow::Result<()> {
    output::run(compare)
}

fn compare(out: &mut dyn Write) -> anyhow::Result<()> {
    let file = ModelFile::from_gguf_bytes("fairy-tales", MODEL)?.with_isa(Isa::from_env()?);
    let (tokenizer, model) = (Tokenizer::from_model(&file)?, Arc::new(Model::load(&file)?));
    let shape = model.attention_shape();
    let options = AttentionOptions::default().store(KvStore::F32).isa(model.isa());
    let new = || Streaming { shape, options: options.clone(), sinks: 4, window: 64, rows: Vec::new() };
    let own = Session::new(model.clone(), |_| Ok(Box::new(new())))?;
    let dense = Session::new(model, |_| Ok(Box::new(DenseAttention::new(shape, options.clone())?)))?;
    let prompt = tokenizer.encode_beginning("Once upon a time there was")?;
    for (name, mut session) in [("sinks and window", own), ("dense", dense)] {
        let mut sampler = Sampler::new(SamplerConfig::default().with_temperature(0.7).with_top_k(40))?;
        let mut logits = session.prefill(&prompt)?;
        for _ in 0..200 {
            logits = session.decode(sampler.sample(&logits.to_vec())?)?;
        }
        writeln!(out, "{name}: {} tokens, {} bytes", session.tokens().len(), session.footprint().total())?;
        writeln!(out, "{}\n", tokenizer.decode(session.tokens())?)?;
    }
    Ok(())
}
