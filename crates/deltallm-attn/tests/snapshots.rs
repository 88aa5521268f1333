//! Saved caches: what is loaded goes on, bit for bit, as what was saved; and whatever a file holds, nothing panics.

use std::io::Cursor;

use bytes::Bytes;
use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, ExactWindow,
    HeadsViewMut, HybridAttention, HybridConfig, KvStore, Mask, MemoryBudget, ThresholdPolicy,
};
use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};
use deltallm_testing::{Random, parts, snapshot};
use proptest::prelude::*;

mod common;

use common::{Inputs, options};

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 16).unwrap()
}

/// Every kernel that takes the store of these options, hybrid attention with two windows.
fn kernels(options: &AttentionOptions) -> Vec<Box<dyn AttentionKernel>> {
    let (shape, policy) = (shape(), ThresholdPolicy::Uniform(0.3));
    let config = HybridConfig::new(policy.clone()).options(options.clone());
    let blocks = config.clone().exact_window(ExactWindow::Block { scale: 0.2 }).exact_sinks(0);
    let hybrid = |config| HybridAttention::new(shape, config).map(|kernel| Box::new(kernel) as _);
    let dense = DenseAttention::new(shape, options.clone()).map(|kernel| Box::new(kernel) as _);
    let delta = DeltaAttention::new(shape, policy, 0, options.clone()).map(|kernel| Box::new(kernel) as _);
    [dense, delta, hybrid(config), hybrid(blocks)].into_iter().filter_map(Result::ok).collect()
}

/// One of these, without tokens.
fn fresh(options: &AttentionOptions, number: usize) -> Box<dyn AttentionKernel> {
    kernels(options).swap_remove(number)
}

fn saved(kernel: &dyn AttentionKernel) -> Vec<u8> {
    let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
    kernel.save(&mut writer).unwrap();
    writer.write(&mut file).unwrap();
    let file = file.into_inner();
    assert_eq!(file.len() as u64, writer.bytes());
    file
}

fn load(kernel: &mut dyn AttentionKernel, file: &[u8]) -> Result<(), SnapshotError> {
    let mut reader = SnapshotReader::copying(Bytes::copy_from_slice(file))?;
    kernel.load(&mut reader)?;
    reader.end()
}

fn one_by_one(from: usize, to: usize) -> Vec<usize> {
    (from + 1..=to).collect()
}

/// Bytes that start at a multiple of 8, as a mapped file does.
struct Aligned(Vec<u64>, usize);

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0)[..self.1]
    }
}

fn mapped(file: &[u8]) -> Bytes {
    let words = file.chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    });
    Bytes::from_owner(Aligned(words.collect(), file.len()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(24)))]

    #[test]
    fn what_is_loaded_goes_on_as_what_was_saved(
        at in 2_usize..400, cut in 0_usize..100, more in 1_usize..100, narrowed in 0_usize..3, seed: u64,
        mask in prop_oneof![Just(Mask::Causal), Just(Mask::SlidingWindow(100)), Just(Mask::Chunked(64)), Just(Mask::Chunked(128))],
    ) {
        let end = at + more;
        let inputs = Inputs::new(shape(), end, seed);
        for store in KvStore::ALL {
            let options = options().store(store).mask(mask);
            for (number, mut kernel) in kernels(&options).into_iter().enumerate() {
                let what = format!("kernel {number}, {store}, {at}, {cut}, {more}");
                inputs.run(&mut *kernel, &[at.div_ceil(2), at]);
                let _ = kernel.truncate(at.saturating_sub(cut));
                (0..narrowed).for_each(|_| drop(kernel.narrow()));
                let file = saved(&*kernel);
                let budget = MemoryBudget::unlimited();
                let mut copied = fresh(&options.clone().budget(budget.clone()), number);
                load(&mut *copied, &file).unwrap();
                prop_assert_eq!((copied.len(), copied.stats()), (kernel.len(), kernel.stats()), "{}", what);
                prop_assert_eq!(budget.used(), copied.footprint().total(), "{}", what);
                prop_assert_eq!(&saved(&*copied), &file, "{}", what);

                let lent_budget = MemoryBudget::unlimited();
                let mut lent = fresh(&options.clone().budget(lent_budget.clone()), number);
                lent.load(&mut SnapshotReader::lending(mapped(&file)).unwrap()).unwrap();
                prop_assert!(lent_budget.used() <= budget.used());

                let ends = one_by_one(kernel.len(), end);
                let expected = inputs.run(&mut *kernel, &ends);
                prop_assert_eq!(&inputs.run(&mut *copied, &ends), &expected, "{}", what);
                prop_assert_eq!(&inputs.run(&mut *lent, &ends), &expected, "{}", what);
                let back = end.saturating_sub(cut + 1).max(1);
                if kernel.truncate(back).is_ok() {
                    copied.truncate(back).unwrap();
                    lent.truncate(back).unwrap();
                    let expected = inputs.run(&mut *kernel, &[end]);
                    prop_assert_eq!(&inputs.run(&mut *copied, &[end]), &expected, "{}", what);
                    prop_assert_eq!(&inputs.run(&mut *lent, &[end]), &expected, "{}", what);
                }
                prop_assert_eq!(budget.used(), copied.footprint().total(), "{}", what);
            }
        }
    }
}

#[test]
fn what_ends_where_a_chunk_begins_is_loaded_again() {
    let inputs = Inputs::new(shape(), 300, 1);
    for (chunk, store) in [(64, KvStore::Compact), (128, KvStore::Compact), (128, KvStore::F16)] {
        let make = || {
            let options = options().store(store).mask(Mask::Chunked(chunk));
            let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3)).codes_from(0).options(options);
            HybridAttention::new(shape(), config).unwrap()
        };
        let mut kernel = make();
        for end in 1..=300 {
            inputs.run(&mut kernel, &[end]);
            let mut again = make();
            load(&mut again, &saved(&kernel)).unwrap();
            assert_eq!(again.len(), end);
        }
    }
}

#[test]
fn a_damaged_file_is_refused_wherever_the_damage_is() {
    let inputs = Inputs::new(shape(), 300, 1);
    let options = options().store(KvStore::Compact);
    let mut kernel = fresh(&options, 1);
    inputs.run(&mut *kernel, &[300]);
    let file = saved(&*kernel);
    let mut random = Random::new(1);
    for _ in 0..300 {
        let mut bad = file.clone();
        let at = random.below(bad.len());
        bad[at] ^= 1 << random.below(8);
        let mut other = fresh(&options, 1);
        // What is between the parts stands for nothing.
        let loaded = load(&mut *other, &bad);
        assert!(loaded.is_err() || saved(&*other) == file, "{at}");
        assert!(loaded.is_ok() || other.is_empty(), "{at}");
    }
    for len in [0, 7, 43, 44, 100, 4096, file.len() - 1] {
        assert!(load(&mut *fresh(&options, 1), &file[..len]).is_err(), "{len}");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(matches!(load(&mut *fresh(&options, 1), &longer), Err(SnapshotError::Length { .. })));
    let mut later = file;
    later[8] = 3;
    let error = load(&mut *fresh(&options, 1), &later).unwrap_err();
    assert_eq!(error, SnapshotError::Made { what: "version", expected: 2, got: 3 });
}

#[test]
fn a_cache_with_other_settings_is_not_loaded() {
    let inputs = Inputs::new(shape(), 300, 2);
    for store in KvStore::ALL {
        let options = options().store(store);
        for (number, mut kernel) in kernels(&options).into_iter().enumerate() {
            inputs.run(&mut *kernel, &[300]);
            let file = saved(&*kernel);
            for (other, mut empty) in
                kernels(&options).into_iter().enumerate().filter(|(other, _)| *other != number)
            {
                let error = load(&mut *empty, &file).unwrap_err();
                assert!(matches!(error, SnapshotError::Other { .. }), "{store}, {number}, {other}: {error}");
                assert!(empty.is_empty());
            }
            let error = load(&mut *kernel, &file).unwrap_err();
            assert!(matches!(error, SnapshotError::Unsupported { .. }), "{error}");
            assert_eq!(kernel.len(), 300);
            kernel.begin_step();
            assert!(kernel.save(&mut SnapshotWriter::new()).is_err());
        }
    }
    let config = |theta: f32| HybridConfig::new(ThresholdPolicy::Uniform(theta)).options(options());
    let mut kernel = HybridAttention::new(shape(), config(0.3)).unwrap();
    inputs.run(&mut kernel, &[300]);
    let error = load(&mut HybridAttention::new(shape(), config(0.4)).unwrap(), &saved(&kernel)).unwrap_err();
    assert!(matches!(error, SnapshotError::Other { what: "thresholds", .. }), "{error}");
}

#[test]
fn the_budget_must_cover_what_is_loaded() {
    let inputs = Inputs::new(shape(), 300, 3);
    for store in KvStore::ALL {
        for (number, mut kernel) in kernels(&options().store(store)).into_iter().enumerate() {
            inputs.run(&mut *kernel, &[300]);
            let (file, bytes) = (saved(&*kernel), kernel.footprint().total());
            let budget = MemoryBudget::new(bytes / 2);
            let mut small = fresh(&options().store(store).budget(budget.clone()), number);
            let error = load(&mut *small, &file).unwrap_err();
            assert!(matches!(error, SnapshotError::Core(_)), "{error}");
            drop(small);
            assert_eq!(budget.used(), 0);
        }
    }
}

/// Changes the numbers or the pieces of a file, and makes its checksums fit.
fn forged(file: &[u8], random: &mut Random) -> Vec<u8> {
    let [mut numbers, mut pieces] = parts(file);
    let word = |numbers: &[u8], at: usize| u64::from_le_bytes(numbers[8 * at..][..8].try_into().unwrap());
    let words = numbers.len() / 8;
    for _ in 0..1 + random.below(3) {
        if random.below(2) == 0 && !pieces.is_empty() {
            let at = random.below(pieces.len());
            pieces[at] = random.bits() as u8;
        } else if random.below(4) == 0 {
            // Pages of another size, with which the pieces are as long: 64 tokens in one are 16 in four.
            let stores: Vec<usize> =
                (0..words.saturating_sub(6)).filter(|at| word(&numbers, at + 1) == 64).collect();
            if let Some(&at) = stores.get(random.below(stores.len().max(1))) {
                let pages = word(&numbers, at + 6).wrapping_mul(4);
                for (field, value) in [(at + 1, 16), (at + 6, pages)] {
                    numbers[8 * field..][..8].copy_from_slice(&value.to_le_bytes());
                }
            }
        } else {
            let at = random.below(words);
            let now = word(&numbers, at);
            let other = match random.below(5) {
                0 => random.bits(),
                1 => u64::MAX,
                2 => now.wrapping_add(1),
                3 => now.wrapping_sub(1),
                _ => now ^ 1 << random.below(64),
            };
            numbers[8 * at..][..8].copy_from_slice(&other.to_le_bytes());
        }
    }
    snapshot(&numbers, &pieces)
}

/// How many forged files of each cache are tried, and how many of them were loaded.
fn forge(rounds: usize, seed: u64) -> usize {
    let inputs = Inputs::new(shape(), 400, 4);
    let mut random = Random::new(seed);
    let mut loaded = 0;
    for store in KvStore::ALL {
        for mask in [Mask::Causal, Mask::SlidingWindow(100)] {
            let options = options().store(store).mask(mask);
            for (number, mut kernel) in kernels(&options).into_iter().enumerate() {
                inputs.run(&mut *kernel, &[300]);
                let file = saved(&*kernel);
                for _ in 0..rounds {
                    let mut other = fresh(&options.clone().budget(MemoryBudget::new(1 << 24)), number);
                    let forged = Bytes::from(forged(&file, &mut random));
                    let reader = SnapshotReader::copying(forged);
                    if reader.and_then(|mut reader| other.load(&mut reader)).is_err() {
                        assert!(other.is_empty());
                        continue;
                    }
                    loaded += 1;
                    // Nonsense may come out, or an error, but it comes out.
                    for end in [301, 302, 400] {
                        if other.len() < end {
                            let _ = inputs.call(&mut *other, end);
                        }
                    }
                    let of = [1, shape().heads(), shape().head_dim()];
                    let mut out = vec![0.0; inputs.q_row()];
                    let none = inputs.kv(&inputs.k, 0..0);
                    let out = HeadsViewMut::new(&mut out, of).unwrap();
                    let _ = other.forward_heads(inputs.q(0..1), none, none, out);
                    let cut = other.len().saturating_sub(1 + random.below(80));
                    if other.truncate(cut).is_ok() && cut < 400 {
                        let _ = inputs.call(&mut *other, cut + 1);
                    }
                    let _ = other.narrow();
                    let _ = other.save(&mut SnapshotWriter::new());
                }
            }
        }
    }
    loaded
}

#[test]
fn a_forged_file_is_refused_or_leads_to_nonsense_but_nothing_panics() {
    assert!(forge(40, 1) > 100, "most changes of pieces cannot be noticed");
}

#[test]
#[ignore = "an hour; cargo test --release -p deltallm-attn --test snapshots -- --ignored"]
fn many_forged_files() {
    let start = std::time::Instant::now();
    for seed in 2.. {
        forge(1000, seed);
        println!("seed {seed}");
        if start.elapsed().as_secs() > 3600 {
            break;
        }
    }
}
