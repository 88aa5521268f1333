//! Sessions that are forked, cut, saved, opened, continued speculatively and thrown away for as long as one likes, beside processes that are killed while
//! they write: no wrong bit, nothing lost, nothing leaked.
//!
//! `DELTALLM_SOAK_SECONDS=3600 cargo test --release -p deltallm-models --test soak -- --ignored --nocapture`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deltallm_attn::{KernelContext, KernelKind, KernelSpec, KvStore, MemoryBudget};
use deltallm_models::{Model, ModelFile, PrefixStore, PromptCache, Session};
use deltallm_testing::Random;

/// Tokens that can be taken back without a trace.
const REWIND: usize = 16;
const CHUNK: usize = 64;
const MOST_TOKENS: usize = 900;
const SESSIONS: usize = 6;
/// Names the folder that a process is to write prompts to until it is killed.
const FOLDER: &str = "DELTALLM_SOAK_FOLDER";

fn model() -> Arc<Model> {
    let file = ModelFile::open("../deltallm-cli/assets/fairy-tales.gguf").unwrap();
    Arc::new(Model::load(&file).unwrap())
}

fn specs() -> Vec<KernelSpec> {
    let stores = KvStore::ALL.map(|store| KernelSpec::default().store(store));
    let dense = KernelSpec::default().kernel(KernelKind::Dense);
    stores.into_iter().chain([dense.clone(), dense.store(KvStore::Int8)]).collect()
}

/// One of a hundred prompts, many of which begin alike.
fn prompt(random: &mut Random) -> Vec<u32> {
    let (text, tokens) = (random.below(100), 1 + random.below(300));
    let word = |t: usize| (7 + t * t % 500 + if t > 130 { text } else { text / 10 }) as u32;
    (0..tokens).map(word).collect()
}

/// What a session has been asked to do, and is asked again of a fresh one.
#[derive(Clone)]
enum Call {
    Prompt(Vec<u32>),
    Token(u32),
}

/// A session with its history.
struct Lived {
    spec: usize,
    session: Session,
    calls: Vec<Call>,
    /// The most tokens that it has had: as far as it goes back from there it is exact.
    furthest: usize,
}

struct Soak {
    model: Arc<Model>,
    specs: Vec<KernelSpec>,
    budget: MemoryBudget,
    random: Random,
    folder: PathBuf,
    lived: Vec<Lived>,
    stores: Vec<PrefixStore>,
    checked: usize,
}

impl Soak {
    fn new(model: Arc<Model>, folder: PathBuf, seed: u64) -> Self {
        let (specs, budget) = (specs(), MemoryBudget::new(256 << 20));
        let stores = specs.iter().map(|spec| {
            let context = Self::context(&model, &budget);
            let store = PrefixStore::new(model.clone(), spec.clone(), context).unwrap();
            store.chunk(CHUNK).most_bytes(64 << 20)
        });
        let stores = stores.collect();
        let random = Random::new(seed);
        Self { model, specs, budget, random, folder, lived: Vec::new(), stores, checked: 0 }
    }

    fn context(model: &Model, budget: &MemoryBudget) -> KernelContext {
        model.kernel_context().budget(budget.clone()).exact_rewind(REWIND)
    }

    fn session(&self, spec: usize) -> Session {
        let context = Self::context(&self.model, &self.budget);
        let mut session =
            Session::new(self.model.clone(), |layer| self.specs[spec].build(layer, &context)).unwrap();
        session.set_chunk(CHUNK);
        session
    }

    fn token(&mut self) -> u32 {
        self.random.below(500) as u32
    }

    /// Something happens.
    fn step(&mut self) {
        if self.lived.len() < SESSIONS && self.random.below(3) == 0 || self.lived.is_empty() {
            return self.begin();
        }
        let at = self.random.below(self.lived.len());
        if self.lived[at].session.tokens().len() > MOST_TOKENS {
            self.lived.swap_remove(at);
            return;
        }
        self.lived[at].furthest = self.lived[at].furthest.max(self.lived[at].session.tokens().len());
        match self.random.below(20) {
            0..7 => self.decode(at),
            7..9 => {
                let tokens: Vec<u32> = (0..1 + self.random.below(100)).map(|_| self.token()).collect();
                self.lived[at].session.prefill(&tokens).unwrap();
                self.lived[at].calls.push(Call::Prompt(tokens));
            }
            9..12 => self.rewind(at),
            12..14 => {
                let Lived { spec, session, calls, furthest } = &self.lived[at];
                let (session, calls) = (session.fork().unwrap(), calls.clone());
                let fork = Lived { spec: *spec, session, calls, furthest: *furthest };
                self.lived.push(fork);
                if self.lived.len() > SESSIONS {
                    let gone = self.random.below(self.lived.len());
                    self.lived.swap_remove(gone);
                }
            }
            14..16 => self.save(at),
            16 => drop(self.lived.swap_remove(at)),
            _ => self.check(at),
        }
    }

    /// A new session, from a prompt that may have been read.
    fn begin(&mut self) {
        let (spec, prompt) = (self.random.below(self.specs.len()), prompt(&mut self.random));
        let (session, _) = self.stores[spec].session(&prompt, |_| {}).unwrap();
        let furthest = prompt.len();
        self.lived.push(Lived { spec, session, calls: vec![Call::Prompt(prompt)], furthest });
    }

    /// Some tokens, of which a draft may have known.
    fn decode(&mut self, at: usize) {
        let tokens: Vec<u32> = (0..1 + self.random.below(20)).map(|_| self.token()).collect();
        for (number, &token) in tokens.iter().enumerate() {
            let right = self.random.below(4).min(tokens.len() - number - 1);
            let mut draft = tokens[number + 1..][..right].to_vec();
            draft.extend((0..self.random.below(3)).map(|_| self.token()));
            self.lived[at].session.decode_speculative(token, |_| draft).unwrap();
            self.lived[at].calls.push(Call::Token(token));
        }
    }

    /// Back by tokens that came one by one.
    fn rewind(&mut self, at: usize) {
        let Lived { session, calls, furthest, .. } = &mut self.lived[at];
        let single = calls.iter().rev().take_while(|call| matches!(call, Call::Token(_))).count();
        let left = REWIND.saturating_sub(*furthest - session.tokens().len());
        let tokens = self.random.below(1 + single.min(left));
        session.rewind(session.tokens().len() - tokens).unwrap();
        calls.truncate(calls.len() - tokens);
    }

    /// To a file and back, copied or mapped.
    fn save(&mut self, at: usize) {
        let path = self.folder.join("session.kv");
        let mut opened = self.session(self.lived[at].spec);
        let Lived { session, .. } = &mut self.lived[at];
        session.save(&path).unwrap();
        let loaded = if self.random.below(2) == 0 { opened.load(&path) } else { opened.map(&path) };
        loaded.unwrap();
        *session = opened;
    }

    /// Compares with a session that does the same for the first time.
    fn check(&mut self, at: usize) {
        let mut fresh = self.session(self.lived[at].spec);
        let token = self.token();
        let Lived { session, calls, spec, .. } = &mut self.lived[at];
        for call in &*calls {
            match call {
                Call::Prompt(tokens) => drop(fresh.prefill(tokens).unwrap()),
                Call::Token(token) => drop(fresh.decode(*token).unwrap()),
            }
        }
        let same = session.decode(token).unwrap() == fresh.decode(token).unwrap();
        assert!(same, "{:?}, {} calls", self.specs[*spec], calls.len());
        calls.push(Call::Token(token));
        self.checked += 1;
    }

    /// Kills a process at some moment while it writes prompts, and reads what it has left.
    fn kill(&mut self) {
        let prompts = self.folder.join("prompts");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "writes_until_it_is_killed"])
            .env(FOLDER, &prompts)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100 + self.random.below(900) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let cache = PromptCache::new(&prompts, 1 << 30).unwrap();
        for _ in 0..5 {
            let prompt = prompt(&mut self.random);
            read(&self.model, &cache, &prompt, true);
        }
        let bytes: u64 = files(&prompts).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert!(bytes < 200 << 20, "{bytes}");
    }
}

/// Reads a prompt with a folder, and compares if that is asked for.
fn read(model: &Arc<Model>, cache: &PromptCache, prompt: &[u32], compare: bool) {
    let spec = KernelSpec::default().store(KvStore::Compact);
    let alike = |a, b| spec.reads_alike(&model.kernel_context(), a, b);
    let session = || {
        let mut session = Session::with_spec(model.clone(), &spec).unwrap();
        session.set_chunk(CHUNK);
        session
    };
    let mut kept = session();
    let prompted = cache.prefill(&mut kept, prompt, &alike, |_| {}).unwrap();
    if compare {
        let mut alone = session();
        assert_eq!(prompted.logits, alone.prefill(prompt).unwrap(), "found {}", prompted.found);
        assert_eq!(kept.decode(9).unwrap(), alone.decode(9).unwrap());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
#[ignore = "a process of the soak"]
fn writes_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (model, mut random) = (model(), Random::new(u64::from(std::process::id())));
    // Small, so that files are deleted all the time.
    let cache = PromptCache::new(folder, 20 << 20).unwrap();
    loop {
        read(&model, &cache, &prompt(&mut random), false);
    }
}

/// Bytes of the process that are in memory, where the system says.
fn resident() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<u64>().ok()? * 4096)
}

#[test]
#[ignore = "as long as DELTALLM_SOAK_SECONDS says, or 20 seconds: see above"]
fn soak() {
    let seconds = std::env::var("DELTALLM_SOAK_SECONDS").map_or(20, |text| text.parse().unwrap());
    let folder = std::env::temp_dir().join(format!("deltallm-soak-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let start = Instant::now();
    let mut soak = Soak::new(model(), folder.clone(), 1);
    let (mut steps, mut kills, mut told, mut early) = (0_usize, 0_usize, Instant::now(), None);
    while start.elapsed() < Duration::from_secs(seconds) {
        soak.step();
        steps += 1;
        if steps.is_multiple_of(200) {
            soak.kill();
            kills += 1;
        }
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            // After a while, so that every store is full.
            early = early.or(resident().filter(|_| start.elapsed() > Duration::from_secs(seconds / 4)));
            let (checked, used) = (soak.checked, soak.budget.used());
            println!(
                "{steps} steps, {checked} checked, {kills} killed, {used} bytes charged, {:?} resident",
                resident()
            );
        }
    }
    assert!(soak.checked > 0);
    if let Some((early, late)) = early.zip(resident()) {
        assert!(
            late < early + (200 << 20),
            "{early} bytes in memory after a quarter of the time, {late} at the end"
        );
    }
    let budget = soak.budget.clone();
    println!("{steps} steps, {} checked, {kills} killed", soak.checked);
    drop(soak);
    assert_eq!(budget.used(), 0, "bytes that were not given back");
    fs::remove_dir_all(folder).unwrap();
}
