//! Files that are broken in every way that we could think of, by name: each is refused with an error that says what is wrong,
//! and before that no more memory is taken than the file accounts for.
//!
//! A program of its own, because its allocator counts.
#![cfg(all(feature = "gguf", feature = "safetensors"))]

#[path = "../common/mod.rs"]
mod common;

mod gguf;
mod json;
mod messages;
mod parameters;
mod safetensors_files;
mod ternary;
mod weights;

/// What may be held beyond the size of the file.
const SLACK: u64 = 1 << 20;

/// Calls `read` and checks the most memory that it held at any time, on this thread. The bytes of the file are not counted where they
/// are in memory before, or mapped.
fn measured<T>(file_size: usize, read: impl FnOnce() -> T) -> T {
    let mut result = None;
    let peak = allocation_counter::measure(|| result = Some(read())).bytes_max;
    let test = std::thread::current();
    println!("{}: {peak} bytes for a file of {file_size}", test.name().unwrap_or_default());
    let limit = file_size as u64 + SLACK;
    assert!(peak <= limit, "expected at most {limit} bytes, got {peak}");
    result.expect("what has been read")
}

#[test]
fn memory_beyond_the_size_of_a_file_is_noticed() {
    measured(5, || vec![0_u8; 1 << 20]);
    let beyond = || measured(5, || vec![0_u8; (1 << 20) + 6]);
    assert!(std::panic::catch_unwind(beyond).is_err());
}
