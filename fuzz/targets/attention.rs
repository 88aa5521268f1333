//! Hybrid attention against the f64 reference.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Too short an input says nothing.
    let _ = deltallm_fuzz::attention::run(bytes);
});
