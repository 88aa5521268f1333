//! The instruction set of a process.

use deltallm_attn::{AttentionOptions, Isa};

/// Run with each value of `DELTALLM_SIMD` by `.ci/levels`, which reads what it prints.
#[test]
fn the_instruction_set_that_the_environment_names_is_taken_where_it_is_asked_for() {
    let available = Isa::available();
    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
    println!("levels of this machine: {}", names.join(" "));
    let asked = Isa::from_env();
    match std::env::var("DELTALLM_SIMD") {
        Ok(name) if names.contains(&name.as_str()) => assert_eq!(asked.unwrap().name(), name),
        Ok(name) if !name.is_empty() => assert!(asked.unwrap_err().to_string().contains(&name)),
        _ => assert_eq!(asked.as_ref().ok(), available.last()),
    }

    assert_eq!(AttentionOptions::default().isa, Isa::best(), "constructors do not read the environment");
}
