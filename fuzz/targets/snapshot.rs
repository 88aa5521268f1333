//! Saved caches that someone else has written.
#![no_main]

use deltallm_fuzz::one_thread;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: one_thread(), |bytes: &[u8]| deltallm_fuzz::snapshot::run(bytes));
