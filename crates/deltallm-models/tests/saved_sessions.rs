//! Sessions that are forked, saved and opened go on, bit for bit, as the one that they come from.

use std::fs;
use std::path::{Path, PathBuf};

use deltallm_attn::{KernelKind, KernelSpec, MemoryBudget};
use deltallm_core::SnapshotError;
use deltallm_models::{Model, ModelError, ModelFile, PromptCache, Prompted, Session};

mod common;

use common::sessions::{model, prompt, specs};

/// The bits of the logits after each of the next tokens.
fn next(session: &mut Session, tokens: u32) -> Vec<u32> {
    let logits = (0..tokens).map(|token| session.decode(50 + token).unwrap());
    logits.flat_map(|logits| logits.into_iter().map(f32::to_bits)).collect()
}

/// A file that goes away with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("deltallm-{}-{name}.kv", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn what_is_opened_mapped_or_forked_goes_on_as_the_session_it_comes_from() {
    let model = model();
    for (number, spec) in specs().into_iter().enumerate() {
        let file = Scratch::new(&format!("same-{number}"));
        let mut session = Session::with_spec(model.clone(), &spec).unwrap();
        session.prefill(&prompt(300)).unwrap();
        session.save(&file.0).unwrap();
        let mut opened = Session::open(model.clone(), &spec, &file.0).unwrap();
        let mut mapped = Session::with_spec(model.clone(), &spec).unwrap();
        mapped.map(&file.0).unwrap();
        let mut fork = session.fork().unwrap();
        assert_eq!((opened.tokens(), fork.tokens()), (session.tokens(), session.tokens()));
        // Tables that have grown may have more slots than are needed.
        let bytes = |session: &Session| session.footprint().total() - session.footprint().bookkeeping;
        assert_eq!(bytes(&opened), bytes(&session));
        let expected = next(&mut session, 5);
        assert_eq!(next(&mut opened, 5), expected, "{number}");
        assert_eq!(next(&mut mapped, 5), expected, "{number}");
        assert_eq!(next(&mut fork, 5), expected, "{number}");
        // And as one that has read everything itself.
        let mut whole = Session::with_spec(model.clone(), &spec).unwrap();
        whole.prefill(&prompt(300)).unwrap();
        assert_eq!(next(&mut whole, 5), expected, "{number}");
    }
}

#[test]
fn a_file_is_replaced_whole() {
    let (model, spec, file) = (model(), KernelSpec::default(), Scratch::new("replaced"));
    let mut session = Session::with_spec(model.clone(), &spec).unwrap();
    for tokens in [10, 20] {
        session.prefill(&prompt(10)).unwrap();
        session.save(&file.0).unwrap();
        assert_eq!(Session::open(model.clone(), &spec, &file.0).unwrap().tokens().len(), tokens);
    }
    // A folder has that name: what was written cannot be renamed, and goes away again.
    let folder = Folder::new("occupied");
    let occupied = folder.0.join("x.kv");
    fs::create_dir_all(&occupied).unwrap();
    for path in [occupied.clone(), folder.0.join("there-is-no-such-folder/x.kv")] {
        let error = session.save(path).unwrap_err();
        assert!(matches!(error, ModelError::Io { .. }), "{error}");
    }
    assert_eq!(folder.files(), [occupied]);
}

#[test]
fn a_file_of_something_else_leaves_the_session_empty() {
    let (model, spec, file) = (model(), KernelSpec::default(), Scratch::new("other"));
    let mut session = Session::with_spec(model.clone(), &spec).unwrap();
    session.prefill(&prompt(100)).unwrap();
    session.save(&file.0).unwrap();
    let refused = |spec: &KernelSpec, path: &Path| {
        let mut other = Session::with_spec(model.clone(), spec).unwrap();
        let error = other.load(path).unwrap_err();
        assert!(other.tokens().is_empty() && other.kernels().iter().all(|kernel| kernel.is_empty()));
        let mut fresh = Session::with_spec(model.clone(), spec).unwrap();
        assert_eq!(next(&mut other, 3), next(&mut fresh, 3));
        error
    };
    let dense = KernelSpec::default().kernel(KernelKind::Dense);
    let error = refused(&dense, &file.0);
    assert!(matches!(error, ModelError::Snapshot { source: SnapshotError::Other { .. }, .. }), "{error}");
    assert!(matches!(session.load(&file.0), Err(ModelError::Snapshot { .. })), "a session in use");
    assert_eq!(session.tokens().len(), 100);

    let other = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf").unwrap();
    let error = Session::open(Model::load(&other).unwrap(), &spec, &file.0).unwrap_err();
    assert!(
        matches!(error, ModelError::Snapshot { source: SnapshotError::Other { what: "model", .. }, .. }),
        "{error}"
    );

    // In the last layer, with checksums that fit: the others have been loaded by then.
    let whole = fs::read(&file.0).unwrap();
    let mut forged = whole.clone();
    let numbers = u64::from_le_bytes(whole[16..24].try_into().unwrap()) as usize;
    let last = whole[..44 + numbers].windows(6).rposition(|bytes| bytes == b"hybrid").unwrap();
    forged[last..last + 6].copy_from_slice(b"dense!");
    for (of, at) in [(44..44 + numbers, 32), (0..40, 40)] {
        let checksum = crc32fast::hash(&forged[of]);
        forged[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    fs::write(&file.0, &forged).unwrap();
    let error = refused(&spec, &file.0);
    assert!(
        matches!(error, ModelError::Snapshot { source: SnapshotError::Other { what: "kernel", .. }, .. }),
        "{error}"
    );
    fs::write(&file.0, &whole[..whole.len() - 100]).unwrap();
    let error = refused(&spec, &file.0);
    assert!(matches!(error, ModelError::Snapshot { source: SnapshotError::Length { .. }, .. }), "{error}");
    fs::write(&file.0, "Once upon a time").unwrap();
    let error = refused(&spec, &file.0);
    assert!(matches!(error, ModelError::Snapshot { source: SnapshotError::NotASnapshot, .. }), "{error}");
    fs::remove_file(&file.0).unwrap();
    assert!(matches!(refused(&spec, &file.0), ModelError::Io { .. }));
}

#[test]
fn a_fork_that_cannot_be_cut_for_want_of_memory_stays_whole() {
    let model = model();
    let budget = MemoryBudget::new(1 << 28);
    let context = model.kernel_context().budget(budget.clone());
    for spec in specs() {
        let mut session = Session::new(model.clone(), |layer| spec.build(layer, &context)).unwrap();
        session.prefill(&prompt(300)).unwrap();
        let mut fork = session.fork().unwrap();
        let mut others = budget.reservation();
        others.grow(budget.available()).unwrap();
        // Nothing, and enough for some of the layers.
        for left in [0, 200, 2000, 10_000] {
            others.shrink(left);
            match fork.rewind(299) {
                Ok(()) => {
                    assert!(left > 0);
                    break;
                }
                Err(error) => assert!(matches!(error, ModelError::Attention { .. }), "{error}"),
            }
            assert!(fork.kernels().iter().all(|kernel| kernel.len() == 300) && fork.tokens().len() == 300);
        }
        drop(others);
        fork.rewind(299).unwrap();
        assert_eq!((fork.tokens().len(), session.tokens().len()), (299, 300));
    }
}

#[test]
fn eight_samples_take_little_more_than_one() {
    let model = model();
    let budget = MemoryBudget::unlimited();
    let context = model.kernel_context().budget(budget.clone());
    let spec = KernelSpec::default().kernel(KernelKind::Dense);
    let mut prompted = Session::new(model, |layer| spec.build(layer, &context)).unwrap();
    prompted.prefill(&prompt(384)).unwrap();
    let one = budget.used();
    let mut samples: Vec<Session> = (0..8).map(|_| prompted.fork().unwrap()).collect();
    samples.iter_mut().for_each(|sample| drop(next(sample, 3)));
    // A page of 64 tokens for each, of the six that the prompt fills.
    assert!(budget.used() < one * 5 / 2, "{} and {one}", budget.used());
}

/// A folder that goes away with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("deltallm-{}-{name}", std::process::id())))
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Tokens a call, as small as the model's prompts here.
const CHUNK: usize = 64;

/// How much of a prompt was found, and the bits of what follows it.
fn prompted(cache: Option<&PromptCache>, spec: &KernelSpec, tokens: &[u32]) -> (usize, Vec<u32>) {
    let model = model();
    let alike = |a, b| spec.reads_alike(&model.kernel_context(), a, b);
    let mut session = Session::with_spec(model.clone(), spec).unwrap();
    session.set_chunk(CHUNK);
    let prompted = match cache {
        Some(cache) => cache.prefill(&mut session, tokens, &alike, |_| {}).unwrap(),
        None => Prompted {
            logits: session.prefill(tokens).unwrap(),
            found: 0,
            writing: std::time::Duration::ZERO,
        },
    };
    let mut bits: Vec<u32> = prompted.logits.into_iter().map(f32::to_bits).collect();
    bits.extend(next(&mut session, 3));
    (prompted.found, bits)
}

#[test]
fn a_prompt_that_begins_like_an_earlier_one_goes_on_from_there() {
    for (number, spec) in specs().into_iter().enumerate() {
        // Prompts of any length are read alike.
        let spec = spec.exact_prompt(0);
        let folder = Folder::new(&format!("prompts-{number}"));
        let cache = PromptCache::new(&folder.0, 1 << 30).unwrap();
        let long = prompt(310);
        for (tokens, found) in [
            (200, 0),
            (310, 192),
            (310, 310),
            (250, 192),
            (200, 200),
            (199, 192),
            (192, 0),
            (193, 192),
            (60, 0),
        ] {
            let (got, bits) = prompted(Some(&cache), &spec, &long[..tokens]);
            assert_eq!(got, found, "{number}, {tokens}");
            assert_eq!(bits, prompted(None, &spec, &long[..tokens]).1, "{number}, {tokens}");
        }
        // Of another kernel nothing is used.
        let other = KernelSpec::default().kernel(KernelKind::Delta);
        assert_eq!(prompted(Some(&cache), &other, &long).0, 0);
    }
}

#[test]
fn prompts_that_are_read_otherwise_do_not_share() {
    let (folder, spec) = (Folder::new("otherwise"), KernelSpec::default().exact_prompt(250));
    let cache = PromptCache::new(&folder.0, 1 << 30).unwrap();
    prompted(Some(&cache), &spec, &prompt(200));
    assert_eq!(prompted(Some(&cache), &spec, &prompt(240)).0, 192, "both are attended exactly");
    let (found, bits) = prompted(Some(&cache), &spec, &prompt(300));
    assert_eq!((found, bits), (0, prompted(None, &spec, &prompt(300)).1), "the longer one is not");
}

#[test]
fn a_folder_keeps_to_its_limit_and_survives_damage() {
    let (folder, spec) = (Folder::new("limit"), KernelSpec::default());
    let cache = PromptCache::new(&folder.0, 1 << 30).unwrap();
    let prompts: Vec<Vec<u32>> = (1..4).map(|first| [&[first][..], &prompt(100)].concat()).collect();
    for tokens in &prompts {
        prompted(Some(&cache), &spec, tokens);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let bytes = |files: &[PathBuf]| files.iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
    let all = bytes(&folder.files());
    assert_eq!(folder.files().len(), 6, "at the end of each, and at its last whole chunk");
    // The first one is used again, and that makes the second one the oldest.
    prompted(Some(&cache), &spec, &prompts[0]);
    let small = PromptCache::new(&folder.0, all).unwrap();
    prompted(Some(&small), &spec, &prompt(130));
    assert!(bytes(&folder.files()) <= all);
    let found: Vec<usize> = prompts.iter().map(|tokens| find(&folder, &spec, tokens)).collect();
    assert_eq!(found, [101, 0, 101]);
    // No room at all.
    prompted(Some(&PromptCache::new(&folder.0, 10).unwrap()), &spec, &prompt(80));
    assert_eq!(find(&folder, &spec, &prompt(80)), 0);

    for file in folder.files() {
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    }
    fs::write(folder.0.join("notes.txt"), "not ours").unwrap();
    let (found, bits) = prompted(Some(&cache), &spec, &prompts[0]);
    assert_eq!((found, bits), (0, prompted(None, &spec, &prompts[0]).1));
    assert_eq!(find(&folder, &spec, &prompts[0]), 101, "made again");
    assert!(folder.0.join("notes.txt").exists());
    let error = PromptCache::new(folder.0.join("notes.txt"), 1).unwrap_err();
    assert!(matches!(error, ModelError::Io { .. }), "{error}");
}

/// How much of a prompt would be found; nothing is kept.
fn find(folder: &Folder, spec: &KernelSpec, tokens: &[u32]) -> usize {
    prompted(Some(&PromptCache::new(&folder.0, 0).unwrap()), spec, tokens).0
}

#[test]
fn a_prompt_that_is_refused_leaves_the_session_empty() {
    let (folder, spec, model) = (Folder::new("refused"), KernelSpec::default(), model());
    let cache = PromptCache::new(&folder.0, 1 << 30).unwrap();
    prompted(Some(&cache), &spec, &prompt(200));
    let alike = |_, _| true;
    let unknown = [&prompt(200)[..], &[u32::MAX]].concat();
    let too_long = prompt(model.config().context_length + 1);
    for tokens in [unknown, too_long] {
        let mut session = Session::with_spec(model.clone(), &spec).unwrap();
        session.set_chunk(CHUNK);
        assert!(cache.prefill(&mut session, &tokens, &alike, |_| {}).is_err());
        assert!(session.tokens().is_empty());
        assert_eq!(cache.prefill(&mut session, &prompt(200), &alike, |_| {}).unwrap().found, 200);
    }
    // Memory ends behind what was found.
    let budget = MemoryBudget::new(20_000);
    let context = model.kernel_context().budget(budget);
    let mut session = Session::new(model.clone(), |layer| spec.build(layer, &context)).unwrap();
    session.set_chunk(CHUNK);
    let long = [&prompt(200)[..192], &prompt(300)[..]].concat();
    let error = cache.prefill(&mut session, &long, &alike, |_| {}).unwrap_err();
    assert!(error.is_budget_exhausted(), "{error}");
    assert!(session.tokens().is_empty());
}
