//! What a step of decoding allocates.
//!
//! One test in a program of its own, because the allocator counts for the whole process.

use deltallm_attn::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut, SparsityStats};
use deltallm_core::Footprint;
use deltallm_models::{Model, ModelFile, Session};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// With floats, with ternary weights, and with quantised ones.
const MODELS: [&str; 3] = [
    "tests/fixtures/llama/gqa3-d64-llama3/model.gguf",
    "tests/fixtures/bitnet/gqa4-d32/autobitlinear",
    "../deltallm-cli/assets/fairy-tales.gguf",
];

/// Attention that allocates nothing: every token is answered with its own values.
struct Echo {
    len: usize,
}

impl AttentionKernel for Echo {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        _: HeadsView,
        v: HeadsView,
        mut out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let group = q.heads() / v.heads();
        for (token, head) in (0..q.tokens()).flat_map(|token| (0..q.heads()).map(move |head| (token, head))) {
            out.row_mut(token, head).copy_from_slice(v.row(token, head / group));
        }
        self.len += q.tokens();
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.len = len;
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn stats(&self) -> SparsityStats {
        SparsityStats::default()
    }

    fn begin_prompt(&mut self, _: usize) {}

    fn growth(&self, _: usize) -> Option<usize> {
        Some(0)
    }

    fn narrow(&mut self) -> Result<usize, AttentionError> {
        Ok(0)
    }
}

#[test]
fn a_step_of_decoding_allocates_its_logits_and_nothing_else() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for model in MODELS {
        let file = ModelFile::open(model).unwrap();
        let model = Model::load(&file, &mut |_, _| {}).unwrap();
        pool.install(|| {
            let mut session = Session::new(&model, |_| Ok(Box::new(Echo { len: 0 }))).unwrap();
            session.prefill(&[1; 70], &mut |_| {}).unwrap();
            session.decode(1).unwrap(); // the list of tokens grows
            let before = dhat::HeapStats::get();
            for token in 0..10 {
                session.decode(token).unwrap();
            }
            let after = dhat::HeapStats::get();
            assert_eq!(after.total_blocks - before.total_blocks, 10);
            let logits = model.config().vocab_size * size_of::<f32>();
            assert_eq!(after.total_bytes - before.total_bytes, 10 * logits as u64);
        });
    }
}
