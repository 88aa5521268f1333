//! Sessions of the embedded model, whose weights are packed: calls of any size give the same bits.

use std::sync::Arc;

use deltallm_attn::{KernelKind, KernelSpec, KvStore};
use deltallm_models::{Model, ModelFile};

pub(crate) fn file() -> ModelFile {
    ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf").unwrap()
}

pub(crate) fn model() -> Arc<Model> {
    Arc::new(Model::load(&file()).unwrap())
}

/// Hybrid attention in every store, and dense attention in those that it has.
pub(crate) fn specs() -> Vec<KernelSpec> {
    let stores = KvStore::ALL.map(|store| KernelSpec::default().store(store));
    let dense = KvStore::ALL
        .into_iter()
        .filter(|store| store.dense() == *store)
        .map(|store| KernelSpec::default().kernel(KernelKind::Dense).store(store));
    stores.into_iter().chain(dense).collect()
}

pub(crate) fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens).map(|t| (7 + t * t % 500) as u32).collect()
}
