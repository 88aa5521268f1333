//! What is committed for C programs beside the sources is what the sources say.

use std::{env, fs, path::PathBuf};

const HEADER: &str = "include/deltallm.h";
/// Everything that is exported; the order is that of the header.
const SOURCES: [&str; 7] = [
    "src/error.rs",
    "src/memory.rs",
    "src/kernel.rs",
    "src/forward.rs",
    "src/batch.rs",
    "src/half.rs",
    "src/saved.rs",
];

fn path(of: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(of)
}

fn read(of: &str) -> String {
    fs::read_to_string(path(of)).unwrap_or_else(|error| panic!("{of}: {error}"))
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(path("cbindgen.toml")).unwrap();
    let builder =
        SOURCES.into_iter().fold(cbindgen::Builder::new(), |builder, source| builder.with_src(path(source)));
    let mut header = Vec::new();
    builder.with_config(config).generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_what_the_sources_say() {
    let header = generated();
    if env::var_os("DELTALLM_WRITE_HEADER").is_some() {
        let unfinished = path("include/deltallm.h.tmp");
        fs::write(&unfinished, &header).unwrap();
        fs::rename(&unfinished, path(HEADER)).unwrap();
    }
    let committed = fs::read_to_string(path(HEADER)).unwrap_or_default();
    let differs = committed.lines().zip(header.lines()).position(|(old, new)| old != new);
    assert!(
        committed == header,
        "{HEADER} is not what the sources say (line {}); write it anew with\n    \
         DELTALLM_WRITE_HEADER=1 cargo test -p deltallm-capi --test header",
        differs.unwrap_or_else(|| committed.lines().count().min(header.lines().count())) + 1
    );
}

#[test]
fn the_guide_shows_the_example_and_the_tables_as_they_are() {
    let guide = read("../../docs/c-api.md");
    assert!(guide.contains(&format!("```c\n{}```", read("c/example.c"))), "another example than c/example.c");
    let source = read("src/lib.rs");
    let rows: Vec<_> =
        source.lines().filter_map(|line| line.strip_prefix("//! ")).filter(|l| l.starts_with('|')).collect();
    let missing: Vec<_> = rows.iter().filter(|row| !guide.lines().any(|line| line == **row)).collect();
    assert!(
        rows.len() > 20 && missing.is_empty(),
        "docs/c-api.md lacks these rows of src/lib.rs: {missing:#?}"
    );
}
