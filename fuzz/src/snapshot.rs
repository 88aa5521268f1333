//! A saved cache with checksums that fit, whatever it holds: it is refused, or leads to nonsense, but to nothing worse.
//!
//! An input is three bytes that say what kernel, two that say how long the numbers of the snapshot are, these, and the pieces.

use std::io::Cursor;

use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, ExactWindow,
    HeadsView, HeadsViewMut, HybridAttention, HybridConfig, KvStore, Mask, MemoryBudget, ThresholdPolicy,
};
use deltallm_core::{SnapshotReader, SnapshotWriter};
use deltallm_testing::{Random, parts, snapshot};

/// What a cache may take: far more than any input is long.
const BUDGET: usize = 8 << 20;
const TOKENS: usize = 130;

fn shape() -> AttentionShape {
    AttentionShape::new(2, 1, 8).expect("sizes above 0")
}

/// The kernel that three bytes stand for, if there is one.
fn kernel([kind, store, mask]: [u8; 3], budget: &MemoryBudget) -> Option<Box<dyn AttentionKernel>> {
    let store = *KvStore::ALL.get(usize::from(store))?;
    let mask = *[Mask::Causal, Mask::SlidingWindow(40), Mask::Chunked(50)].get(usize::from(mask))?;
    let options = AttentionOptions::default().store(store).mask(mask).budget(budget.clone());
    let policy = ThresholdPolicy::Uniform(0.3);
    let hybrid = HybridConfig::new(policy.clone()).exact_window(ExactWindow::Sliding(16));
    Some(match kind {
        0 => Box::new(DenseAttention::new(shape(), options).ok()?),
        1 => Box::new(DeltaAttention::new(shape(), policy, 0, options).ok()?),
        2 => Box::new(HybridAttention::new(shape(), hybrid.options(options)).ok()?),
        3 => Box::new(HybridAttention::new(shape(), hybrid.codes_from(0).options(options)).ok()?),
        _ => return None,
    })
}

/// Calls a kernel with some tokens; errors are as good as answers.
fn call(kernel: &mut dyn AttentionKernel, tokens: usize, random: &mut Random) {
    let (q, k) = (random.numbers(tokens * 16), random.numbers(tokens * 8));
    let mut out = vec![0.0; q.len()];
    let views = (HeadsView::new(&q, [tokens, 2, 8]), HeadsView::new(&k, [tokens, 1, 8]));
    let (Ok(q), Ok(k)) = views else { return };
    let Ok(out) = HeadsViewMut::new(&mut out, [tokens, 2, 8]) else { return };
    let _ = kernel.forward_heads(q, k, k, out);
}

/// Loads the input, and uses what has been loaded.
pub fn run(input: &[u8]) {
    let [kind, store, mask, low, high, rest @ ..] = input else { return };
    let budget = MemoryBudget::new(BUDGET);
    let Some(mut cache) = kernel([*kind, *store, *mask], &budget) else { return };
    let numbers = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let file = snapshot(&rest[..numbers], &rest[numbers..]);
    let reader = SnapshotReader::copying(file.into());
    if reader.and_then(|mut reader| cache.load(&mut reader)).is_err() {
        assert!(cache.is_empty(), "a cache that was not loaded");
    }
    assert_eq!(cache.footprint().total(), budget.used(), "bytes that nobody has been charged for");
    let mut random = Random::new(1);
    // A forged length is no work.
    if cache.len() < 4096 {
        for tokens in [1, 1, 3, 40] {
            call(&mut *cache, tokens, &mut random);
        }
        let fork = cache.fork();
        let _ = cache.truncate(cache.len().saturating_sub(30));
        call(&mut *cache, 2, &mut random);
        let _ = cache.narrow();
        call(&mut *cache, 1, &mut random);
        let _ = fork.map(|mut fork| fork.narrow());
    }
    let _ = cache.save(&mut SnapshotWriter::new());
    drop(cache);
    assert_eq!(budget.used(), 0, "bytes that were not given back");
}

/// Inputs that are loaded: one for each kernel and store, with their names.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for settings in (0..4 * 5).map(|number: u8| [number % 4, number / 4, number % 3]) {
        let Some(mut kernel) = kernel(settings, &MemoryBudget::unlimited()) else { continue };
        let mut random = Random::new(2);
        call(&mut *kernel, TOKENS, &mut random);
        let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
        let saved = kernel.save(&mut writer).is_ok() && writer.write(&mut file).is_ok();
        assert!(saved, "a cache can be saved");
        let [numbers, pieces] = parts(file.get_ref());
        let length = (numbers.len() as u16).to_le_bytes();
        let [kind, store, mask] = settings;
        seeds.push((
            format!("kernel-{kind}-{store}-{mask}"),
            [&settings[..], &length, &numbers, &pieces].concat(),
        ));
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_caches() {
        for (name, input) in seeds() {
            let mut cache =
                kernel([input[0], input[1], input[2]], &MemoryBudget::unlimited()).expect("a kernel");
            let (numbers, rest) = (usize::from(u16::from_le_bytes([input[3], input[4]])), &input[5..]);
            let file = snapshot(&rest[..numbers], &rest[numbers..]);
            cache.load(&mut SnapshotReader::copying(file.into()).expect("a snapshot")).expect(&name);
            assert_eq!(cache.len(), TOKENS);
            run(&input);
        }
    }

    #[test]
    #[ignore = "writes into the repository: cargo test --lib -- --ignored write_the_seeds"]
    fn write_the_seeds() {
        std::fs::create_dir_all("seeds/snapshot").expect("a folder");
        for (name, input) in seeds() {
            std::fs::write(format!("seeds/snapshot/{name}"), input).expect("a file");
        }
    }
}
