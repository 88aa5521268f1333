//! Saved caches that are forged by someone who knows the format: refused, whatever they say, and without memory for it.

use std::io::Cursor;

use bytes::Bytes;
use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HybridAttention, HybridConfig,
    KvStore, Mask, ThresholdPolicy,
};
use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};
use deltallm_testing::{parts, snapshot};

mod common;

use common::{Inputs, options};

const CHANNELS: u64 = 16;

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 16).unwrap()
}

fn saved(kernel: &dyn AttentionKernel) -> [Vec<u8>; 2] {
    let (mut writer, mut file) = (SnapshotWriter::new(), Cursor::new(Vec::new()));
    kernel.save(&mut writer).unwrap();
    writer.write(&mut file).unwrap();
    parts(file.get_ref())
}

fn load(kernel: &mut dyn AttentionKernel, numbers: &[u8], pieces: &[u8]) -> Result<(), SnapshotError> {
    let mut reader = SnapshotReader::copying(Bytes::from(snapshot(numbers, pieces)))?;
    kernel.load(&mut reader)?;
    reader.end()
}

/// Writes other tokens, first tokens, first pages and pages (docs/formats.md, "rows") over those of all rows that have `from`; how many.
fn overwrite(numbers: &mut [u8], from: [u64; 4], to: [u64; 4]) -> usize {
    let words: Vec<u64> =
        numbers.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect();
    let mut found = 0;
    for at in 3..words.len().saturating_sub(3) {
        if words[at..at + 4] == from && words[at - 3] == CHANNELS && words[at - 1] <= 1 {
            for (word, bytes) in to.iter().zip(numbers[8 * at..].chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            found += 1;
        }
    }
    found
}

fn hybrid(options: AttentionOptions) -> HybridAttention {
    HybridAttention::new(shape(), HybridConfig::new(ThresholdPolicy::Uniform(0.3)).options(options)).unwrap()
}

#[test]
fn pages_that_are_not_there_get_no_memory() {
    let inputs = Inputs::new(shape(), 400, 1);
    let mut kernel = DenseAttention::new(shape(), options()).unwrap();
    inputs.run(&mut kernel, &[300]);
    let [mut numbers, pieces] = saved(&kernel);
    // 16 billion pages, whose table alone would take hundreds of gigabytes.
    assert_eq!(overwrite(&mut numbers, [300, 0, 0, 5], [1 << 40, 0, 0, 1 << 34]), 4);
    let mut other = DenseAttention::new(shape(), options()).unwrap();
    let error = load(&mut other, &numbers, &pieces).unwrap_err();
    assert!(matches!(error, SnapshotError::Length { .. }), "{error}");
    assert!(other.is_empty());
}

#[test]
fn a_cache_that_attends_to_all_tokens_holds_all_of_them() {
    let inputs = Inputs::new(shape(), 400, 2);
    for mask in [Mask::Causal, Mask::Bidirectional] {
        let options = options().mask(mask);
        let mut kernel = DenseAttention::new(shape(), options.clone()).unwrap();
        inputs.run(&mut kernel, &[64]);
        let [mut numbers, pieces] = saved(&kernel);
        assert_eq!(overwrite(&mut numbers, [64, 0, 0, 1], [128, 64, 1, 1]), 4);
        let mut other = DenseAttention::new(shape(), options).unwrap();
        let error = load(&mut other, &numbers, &pieces).unwrap_err();
        assert!(matches!(error, SnapshotError::Invalid { what: "tokens", .. }), "{error}");
        assert!(other.is_empty());
    }
}

/// A cache without codes, whose exact tokens begin where codes would have to be.
#[test]
fn tokens_that_are_neither_coded_nor_exact_are_missed() {
    let inputs = Inputs::new(shape(), 400, 3);
    for store in [KvStore::Int8, KvStore::Compact] {
        let options = options().store(store).mask(Mask::SlidingWindow(1000));
        let mut kernel = hybrid(options.clone());
        inputs.run(&mut kernel, &[150]);
        let [mut numbers, pieces] = saved(&kernel);
        let found = overwrite(&mut numbers, [150, 0, 0, 3], [1200, 192, 3, 16]);
        assert_eq!(found, 4, "keys and values of two heads");
        let pieces = vec![0; pieces.len() / 3 * 16];
        let error = load(&mut hybrid(options), &numbers, &pieces).unwrap_err();
        assert!(matches!(error, SnapshotError::Invalid { .. }), "{error}");
    }
}
