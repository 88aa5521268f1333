//! Sessions that do as they please for a while, two at a time, on one model: prompts up to the end of the context, rewinds,
//! budgets that run out, threads that are left in the middle of their work, kernels that panic. Answers must be those of a
//! fresh session and memory must stay as it is.
//!
//! `cargo test` gives it 20 seconds. For longer, `DELTALLM_SOAK_SECONDS` (one hour unless it says otherwise):
//! `cargo test --release -p deltallm-cli --test soak -- --ignored --nocapture`. `DELTALLM_SOAK_SEED` repeats a run's
//! random choices.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::scope;
use std::time::{Duration, Instant, SystemTime};

use deltallm::models::{LinearForm, Model, ModelError, Session};
use deltallm::{
    AtLimit, AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper, MemoryBudget,
};
use deltallm_cli::{KernelArgs, KernelChoice, KernelKind, LoadedModel};
use ndarray::Array1;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

/// Growth of the resident set, between the second quarter of the time and the last, that is not a leak: the allocator keeps
/// what it was given, and the sessions at work are not always equally large.
const MOST_GROWTH: u64 = 32 << 20;

/// Largest difference of two logits where a prompt came in other pieces: sums of f32 in another order, through five layers.
const TOLERANCE: f32 = 2e-3;

const KERNELS: [&[&str]; 8] = [
    &["--kernel", "dense", "--kv", "f32"],
    &["--kernel", "dense", "--kv", "f16"],
    &["--kernel", "dense", "--kv", "int8"],
    &["--kernel", "delta", "--theta", "0.5"],
    &["--kernel", "hybrid"],
    &["--kernel", "hybrid", "--kv", "compact"],
    &["--kernel", "hybrid", "--kv", "int8", "--theta", "0.6", "--window", "16"],
    &["--kernel", "hybrid", "--kv", "f32", "--target-sparsity", "0.5"],
];

/// What has been done.
#[derive(Debug, Default)]
struct Tally {
    tokens: usize,
    sessions: usize,
    rewinds: usize,
    full_contexts: usize,
    budget_refusals: usize,
    dropped_threads: usize,
    panics: usize,
    equal_answers: usize,
    close_answers: usize,
    largest_difference: f32,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.sessions += other.sessions;
        self.rewinds += other.rewinds;
        self.full_contexts += other.full_contexts;
        self.budget_refusals += other.budget_refusals;
        self.dropped_threads += other.dropped_threads;
        self.panics += other.panics;
        self.equal_answers += other.equal_answers;
        self.close_answers += other.close_answers;
        self.largest_difference = self.largest_difference.max(other.largest_difference);
    }
}

/// A model with the kernels that are tried on it.
struct Subject {
    model: Arc<Model>,
    kernels: Vec<KernelChoice>,
    /// Whether linear layers round their inputs, which makes large differences of small ones.
    packed: bool,
}

impl Subject {
    fn new(form: LinearForm) -> Self {
        let model = LoadedModel::open_as(None, form).expect("the embedded model").graph;
        let kernel = |args: &&[&str]| {
            let settings = KernelArgs::parse(args.iter().copied()).expect("settings");
            settings.resolve(&model).expect("settings for the model")
        };
        let kernels = KERNELS.iter().map(kernel).collect();
        Self { model, kernels, packed: form == LinearForm::Packed }
    }

    fn session(&self, kernel: &KernelChoice) -> Session {
        Session::new(self.model.clone(), |layer| kernel.make(layer)).expect("a session")
    }

    fn context(&self) -> usize {
        self.model.config().context_length
    }

    fn tokens(&self, rng: &mut ChaCha8Rng, count: usize) -> Vec<u32> {
        let vocab_size = self.model.config().vocab_size as u32;
        (0..count).map(|_| rng.random_range(0..vocab_size)).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Prefill(Vec<u32>),
    Decode(u32),
    Rewind(usize),
}

impl Step {
    /// The logits that the step gives, if it gives some.
    fn take(&self, session: &mut Session) -> Result<Option<Array1<f32>>, ModelError> {
        match self {
            Self::Prefill(tokens) => session.prefill(tokens).map(Some),
            Self::Decode(token) => session.decode(*token).map(Some),
            Self::Rewind(len) => session.rewind(*len).map(|()| None),
        }
    }

    /// How many tokens it brings.
    fn tokens(&self) -> usize {
        match self {
            Self::Prefill(tokens) => tokens.len(),
            Self::Decode(_) => 1,
            Self::Rewind(_) => 0,
        }
    }

    /// A step that a session of `len` tokens can take, after those of `history`.
    fn random(subject: &Subject, rng: &mut ChaCha8Rng, history: &History, len: usize) -> Self {
        let room = subject.context() - len;
        match rng.random_range(0..10) {
            // To somewhere, or to where a step ended.
            0 if len > 0 => Self::Rewind(rng.random_range(0..=len)),
            1 if len > 0 => Self::Rewind(*history.ends().choose(rng).unwrap_or(&0)),
            2 if room > 0 => Self::Prefill(subject.tokens(rng, room)),
            3..6 if room > 0 => {
                let count = rng.random_range(1..=room.min(120));
                Self::Prefill(subject.tokens(rng, count))
            }
            _ if room > 0 => Self::Decode(subject.tokens(rng, 1)[0]),
            _ => Self::Rewind(rng.random_range(0..len)),
        }
    }
}

/// The steps that lead to a session's tokens: what came, less what was taken back.
#[derive(Default)]
struct History {
    steps: Vec<Step>,
    /// Those whose tokens are still there, unless a rewind has cut one in two.
    surviving: Option<Vec<Step>>,
    rewinds: usize,
}

impl History {
    fn new() -> Self {
        Self { surviving: Some(Vec::new()), ..Self::default() }
    }

    /// The lengths that the surviving steps led to.
    fn ends(&self) -> Vec<usize> {
        let ends = self.surviving.iter().flatten().scan(0, |len, step| {
            *len += step.tokens();
            Some(*len)
        });
        ends.collect()
    }

    fn push(&mut self, step: Step) {
        if let Some(mut surviving) = self.surviving.take() {
            let whole = match step {
                Step::Rewind(len) => {
                    self.rewinds += 1;
                    cut(&mut surviving, len)
                }
                _ => {
                    surviving.push(step.clone());
                    true
                }
            };
            self.surviving = whole.then_some(surviving);
        } else if let Step::Rewind(len) = step {
            self.rewinds += 1;
            // Behind nothing, everything is whole again.
            self.surviving = (len == 0).then(Vec::new);
        }
        self.steps.push(step);
    }
}

/// Takes steps away until `len` tokens are left, and says whether none had to be divided.
fn cut(steps: &mut Vec<Step>, len: usize) -> bool {
    let mut tokens: usize = steps.iter().map(Step::tokens).sum();
    while tokens > len {
        tokens -= steps.pop().map_or(tokens, |step| step.tokens());
    }
    tokens == len
}

/// Random steps, and then the answers of fresh sessions.
fn walk(subject: &Subject, kernel: &KernelChoice, rng: &mut ChaCha8Rng, tally: &mut Tally) {
    let mut session = subject.session(kernel);
    let mut history = History::new();
    for _ in 0..rng.random_range(2..14) {
        let step = Step::random(subject, rng, &history, session.tokens().len());
        step.take(&mut session).expect("a step");
        tally.tokens += step.tokens();
        history.push(step);
        if session.tokens().len() == subject.context() {
            assert_full(subject, &mut session, rng);
            tally.full_contexts += 1;
        }
    }
    // An answer to compare.
    let step = match subject.context() - session.tokens().len() {
        0 => {
            let step = Step::Rewind(subject.context() - 1);
            step.take(&mut session).expect("a rewind");
            history.push(step);
            Step::Decode(7)
        }
        _ => Step::Decode(subject.tokens(rng, 1)[0]),
    };
    let answer = step.take(&mut session).expect("an answer").expect("logits");
    history.push(step);
    tally.rewinds += history.rewinds;
    tally.sessions += 1;
    compare(subject, kernel, &history, session.tokens(), &answer, tally);
}

/// The same steps give the same bits. Where a kernel forgets rewinds (a hybrid one has lost the exact keys of what was the
/// window), so do the steps that are left over; and a prompt in one piece gives nearly the same.
fn compare(
    subject: &Subject,
    kernel: &KernelChoice,
    history: &History,
    tokens: &[u32],
    answer: &Array1<f32>,
    tally: &mut Tally,
) {
    let fresh = |steps: &[Step]| {
        let mut session = subject.session(kernel);
        let answers = steps.iter().map(|step| step.take(&mut session).expect("a step"));
        answers.last().flatten().expect("logits")
    };
    assert!(fresh(&history.steps) == answer, "{kernel}: the same steps, another answer");
    tally.equal_answers += 1;
    tally.sessions += 1;
    let forgets = kernel.kind() != KernelKind::Hybrid || history.rewinds == 0;
    if let Some(surviving) = history.surviving.as_ref().filter(|_| forgets) {
        assert!(fresh(surviving) == answer, "{kernel}: a rewind has left a trace");
        tally.equal_answers += 1;
        tally.sessions += 1;
    }
    if kernel.kind() == KernelKind::Dense && !kernel.store().is_quantised() && !subject.packed {
        let whole = fresh(&[Step::Prefill(tokens.to_vec())]);
        let difference = whole.iter().zip(answer).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference <= TOLERANCE, "{kernel}: logits differ by {difference}");
        tally.close_answers += 1;
        tally.largest_difference = tally.largest_difference.max(difference);
        tally.sessions += 1;
    }
}

/// A full context takes no more, and nothing is lost.
fn assert_full(subject: &Subject, session: &mut Session, rng: &mut ChaCha8Rng) {
    let (before, bytes) = (session.tokens().to_vec(), session.footprint());
    for step in [Step::Decode(1), Step::Prefill(subject.tokens(rng, 3))] {
        let error = step.take(session).expect_err("the context is full");
        assert!(matches!(error, ModelError::ContextFull { .. }), "{error}");
    }
    assert!(session.tokens() == before && session.footprint() == bytes);
}

/// A session whose budget runs out again and again.
fn run_out(subject: &Subject, kernel: &KernelChoice, rng: &mut ChaCha8Rng, tally: &mut Tally) {
    let at_limit = *[AtLimit::Error, AtLimit::NarrowStore].choose(rng).expect("policies");
    let budget = MemoryBudget::new(rng.random_range(200_000..1_500_000));
    let mut session = subject.session(&kernel.with_budget(budget.clone()));
    session.limit_memory(budget.clone(), at_limit).unwrap();
    let mut history = History::new();
    for _ in 0..rng.random_range(4..20) {
        let before = session.tokens().len();
        let step = Step::random(subject, rng, &history, before);
        match step.take(&mut session) {
            Ok(_) => {
                tally.tokens += step.tokens();
                history.push(step);
            }
            Err(error) => {
                assert!(error.is_budget_exhausted(), "{kernel}: {error}");
                assert_eq!(session.tokens().len(), before);
                tally.budget_refusals += 1;
                let step = Step::Rewind(before / 2);
                step.take(&mut session).expect("a rewind");
                history.push(step);
            }
        }
        assert!(budget.limit().is_some_and(|limit| budget.used() <= limit));
        assert_eq!(budget.used(), session.footprint().total());
    }
    tally.rewinds += history.rewinds;
    tally.sessions += 1;
    // What was refused has left no trace; a hybrid window is an exception, and so is a cache that has been made narrower.
    let step = Step::Decode(5);
    if kernel.kind() != KernelKind::Hybrid
        && session.narrowed().times == 0
        && session.tokens().len() < subject.context()
        && let Ok(Some(answer)) = step.take(&mut session)
    {
        history.push(step);
        compare(subject, kernel, &history, session.tokens(), &answer, tally);
    }
    drop(session);
    assert_eq!(budget.used(), 0);
}

/// A thread whose session is no longer wanted in the middle of its work, while this one's goes on.
fn leave(subject: &Subject, kernel: &KernelChoice, rng: &mut ChaCha8Rng, tally: &mut Tally) {
    let (prompt, count) = (subject.tokens(rng, 600), rng.random_range(0..40));
    scope(|threads| {
        let (sender, receiver) = channel();
        let left = threads.spawn(|| {
            let mut session = subject.session(kernel);
            talk(&mut session, &prompt, sender);
        });
        receiver.iter().take(count).for_each(drop);
        drop(receiver);
        walk(subject, kernel, rng, tally);
        left.join().expect("it ends by itself");
    });
    tally.tokens += 600 + count;
    tally.sessions += 1;
    tally.dropped_threads += 1;
}

/// Generates until nobody listens, or the context ends.
fn talk(session: &mut Session, prompt: &[u32], listener: Sender<u32>) {
    let Ok(mut logits) = session.prefill(prompt) else { return };
    loop {
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token);
        if listener.send(best as u32).is_err() {
            return;
        }
        match session.decode(best as u32) {
            Ok(next) => logits = next,
            Err(_) => return,
        }
    }
}

/// Panics when it is called for the last time.
struct Panicking(Box<dyn AttentionKernel>, usize);

impl KernelWrapper for Panicking {
    type Inner = dyn AttentionKernel;

    fn inner(&self) -> &Self::Inner {
        &*self.0
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut *self.0
    }

    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        match self.1.checked_sub(1) {
            Some(calls) => self.1 = calls,
            None => resume_unwind(Box::new("the kernel panics")), // without a message on the screen
        }
        self.0.forward_heads(q, k, v, out)
    }
}

/// A thread that panics in its session, inside a kernel or between two calls of the model, while this one's goes on.
fn panic_beside(subject: &Subject, kernel: &KernelChoice, rng: &mut ChaCha8Rng, tally: &mut Tally) {
    let (prompt, calls, layer) = (subject.tokens(rng, 700), rng.random_range(0..12), rng.random_range(0..5));
    let in_kernel = rng.random_bool(0.5);
    scope(|threads| {
        let broken = threads.spawn(|| {
            let mut session = Session::new(subject.model.clone(), |index| {
                let inner = kernel.make(index)?;
                Ok(if in_kernel && index == layer { Box::new(Panicking(inner, calls)) } else { inner })
            })
            .expect("a session");
            let interrupt = |_| {
                if !in_kernel {
                    resume_unwind(Box::new("the caller panics"))
                }
            };
            let _ = session.prefill_with(&prompt, interrupt);
            (0..12).for_each(|_| drop(session.decode(1)));
        });
        walk(subject, kernel, rng, tally);
        assert!(broken.join().is_err(), "it was to panic");
    });
    tally.tokens += 512;
    tally.sessions += 1;
    tally.panics += 1;
}

/// Bytes resident in memory, or `None` where the system does not say.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

fn soak(time: Duration) {
    let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = variable("DELTALLM_SOAK_SEED").unwrap_or_else(clock);
    println!("DELTALLM_SOAK_SEED={seed}, {} s", time.as_secs());
    let mut seeds = ChaCha8Rng::seed_from_u64(seed);
    let subjects = [LinearForm::Packed, LinearForm::F32].map(Subject::new);
    let (start, mut tally) = (Instant::now(), Tally::default());
    let (mut samples, mut works) = (Vec::new(), 0);
    while start.elapsed() < time {
        // Everything has its turn: 5 kinds of work and 8 kernels meet within 40.
        let work = |number: usize, seed: u64| {
            let (mut rng, mut tally) = (ChaCha8Rng::seed_from_u64(seed), Tally::default());
            let subject = &subjects[number / 5 % subjects.len()];
            let kernel = &subject.kernels[number % subject.kernels.len()];
            match number % 5 {
                0 | 1 => walk(subject, kernel, &mut rng, &mut tally),
                2 => run_out(subject, kernel, &mut rng, &mut tally),
                3 => leave(subject, kernel, &mut rng, &mut tally),
                _ => panic_beside(subject, kernel, &mut rng, &mut tally),
            }
            tally
        };
        let pair = [works, works + 1].map(|number| (number, seeds.random()));
        works += pair.len();
        scope(|threads| {
            for done in pair.map(|(number, seed)| threads.spawn(move || work(number, seed))) {
                tally.add(&done.join().expect("one of the two has failed"));
            }
        });
        samples.extend(resident().map(|bytes| (start.elapsed(), bytes)));
        if works.is_multiple_of(2000) {
            println!("{:>6} s  {tally:?}", start.elapsed().as_secs());
        }
    }
    println!("{tally:#?}");
    let quarter = |number: u32| {
        let part = time * (number - 1) / 4..time * number / 4;
        samples.iter().filter(|(at, _)| part.contains(at)).map(|(_, bytes)| *bytes).max()
    };
    match quarter(2).zip(quarter(4)) {
        Some((early, late)) => {
            println!("resident: {early} bytes at most in the second quarter of the time, {late} in the last");
            assert!(late <= early + MOST_GROWTH, "memory has grown by {} bytes", late - early);
        }
        None => println!("memory not measured: no figures from the second or the last quarter of the time"),
    }
    // On a machine that is too slow for that, whatever has been done was right.
    if works >= 200 {
        let Tally { rewinds, full_contexts, budget_refusals, close_answers, .. } = tally;
        let least = [rewinds, full_contexts, budget_refusals, close_answers].into_iter().min();
        assert!(least > Some(0), "something that is to be tried never happened");
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: expected a whole number, got {value:?}")))
}

#[test]
fn sessions_answer_as_fresh_ones_do_and_memory_stays_flat() {
    soak(Duration::from_secs(20));
}

#[test]
#[ignore = "one hour; DELTALLM_SOAK_SECONDS says how long"]
fn the_same_for_an_hour() {
    soak(Duration::from_secs(variable("DELTALLM_SOAK_SECONDS").unwrap_or(3600)));
}
