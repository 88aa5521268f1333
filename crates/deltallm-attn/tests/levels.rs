//! The instruction set of a process.

use deltallm_attn::{AttentionError, AttentionOptions, AttentionShape, SimdLevel};

/// Run with each value of `DELTALLM_SIMD` by `.ci/levels`, which reads what it prints.
#[test]
fn the_level_that_the_environment_names_is_the_default() {
    let levels: Vec<_> = SimdLevel::available().into_iter().map(SimdLevel::name).collect();
    println!("levels of this machine: {}", levels.join(" "));
    let options = AttentionOptions::new(AttentionShape::new(2, 1, 8).unwrap());
    match std::env::var("DELTALLM_SIMD") {
        Err(_) => assert_eq!(Some(&options.unwrap().simd.name()), levels.last()),
        Ok(name) if levels.contains(&name.as_str()) => assert_eq!(options.unwrap().simd.name(), name),
        Ok(_) => assert!(matches!(options, Err(AttentionError::SimdLevel { .. }))),
    }
}
