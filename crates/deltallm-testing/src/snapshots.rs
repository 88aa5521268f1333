//! Snapshots (`docs/formats.md`, saved caches) made by hand, with checksums that fit whatever is in them.

const HEADER: usize = 44;
const BLOCK: usize = 1 << 20;
const ALIGNMENT: usize = 4096;

/// The numbers and the pieces of a snapshot that is whole.
pub fn parts(file: &[u8]) -> [Vec<u8>; 2] {
    let length = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap_or_default()) as usize;
    let (numbers, pieces) = (length(16), length(24));
    [file[HEADER..HEADER + numbers].to_vec(), file[file.len() - pieces..].to_vec()]
}

/// A snapshot of these numbers and pieces.
pub fn snapshot(numbers: &[u8], pieces: &[u8]) -> Vec<u8> {
    let table: Vec<u8> =
        pieces.chunks(BLOCK).flat_map(|block| crc32fast::hash(block).to_le_bytes()).collect();
    let mut file = b"DELTAKV\n".to_vec();
    file.extend(2_u32.to_le_bytes());
    file.extend(0x0102_0304_u32.to_ne_bytes());
    [numbers, pieces].into_iter().for_each(|part| file.extend((part.len() as u64).to_le_bytes()));
    [numbers, &table].into_iter().for_each(|part| file.extend(crc32fast::hash(part).to_le_bytes()));
    file.extend(crc32fast::hash(&file).to_le_bytes());
    file.extend_from_slice(numbers);
    file.extend(table);
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend_from_slice(pieces);
    file
}
