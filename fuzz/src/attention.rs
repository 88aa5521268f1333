//! Hybrid attention through a sequence of calls, cuts and failures, with every instruction set, against the f64 reference.
//!
//! An input is a header that says what kernel, and then two bytes for each step. What the reference cannot say (conversions of the
//! cache, 16-bit products, exact keys that a cut has lost) is compared with weaker bounds: see [`Expected`].

use arbitrary::{Result, Unstructured};
use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, ExactWindow, HeadsView, HeadsViewMut,
    HybridAttention, HybridConfig, Isa, KvStore, Mask, MemoryBudget, Precision, SkipMargin, ThresholdPolicy,
    reference::{Method, attention},
};
use deltallm_core::{CoreError, ModelFingerprint, ThresholdProfile};
use deltallm_testing::Random;

const HEAD_DIMS: [usize; 8] = [1, 5, 8, 16, 31, 32, 33, 64];

/// What the kernel is made of.
#[derive(Debug)]
pub struct Setting {
    shape: AttentionShape,
    mask: Mask,
    store: KvStore,
    config: HybridConfig,
    /// Whether no token is ever coded: the mask reaches back no further than the window.
    uncoded: bool,
    thresholds: Vec<Vec<f32>>,
    softcap: Option<f32>,
    precision: Precision,
    budget: Option<usize>,
    pattern: Pattern,
}

/// What numbers the inputs are.
#[derive(Debug, Clone, Copy)]
struct Pattern {
    seed: u64,
    kind: u8,
    /// Power of two that keys are multiplied by.
    key_scale: i32,
    /// The same for values.
    value_scale: i32,
}

/// What happens next.
#[derive(Debug)]
enum Step {
    /// That many tokens in one call.
    Forward(usize),
    /// A call with a number that is not finite.
    Poisoned(usize),
    /// The same token count as heads, one token less in the values than in the keys.
    WrongShape,
    Truncate(usize),
    BeginPrompt(usize),
    Narrow,
}

impl Setting {
    fn read(u: &mut Unstructured) -> Result<Self> {
        let mut byte = || u.arbitrary::<u8>();
        let (group, kv_heads) = (usize::from(byte()? % 5) + 1, usize::from(byte()? % 2) + 1);
        let shape = AttentionShape::new(group * kv_heads, kv_heads, HEAD_DIMS[usize::from(byte()? % 8)]);
        let shape = shape.expect("sizes above 0");
        let store = KvStore::ALL[usize::from(byte()?) % KvStore::ALL.len()];
        let window = match byte()? {
            keys @ 0..128 => ExactWindow::Sliding(usize::from(keys) + 1),
            share => ExactWindow::Block { scale: f32::from(share - 127) / 129.0 },
        };
        let (sinks, exact_prompt) = (usize::from(byte()? % 70), usize::from(byte()? % 128));
        let skip_margin = match byte()? {
            0..100 => None,
            margin @ 100..200 => Some(SkipMargin::Fixed(f32::from(margin - 99) / 16.0)),
            base => Some(SkipMargin::length((f32::from(base) - 215.0) / 8.0, 0.5)),
        };
        let softcap = match byte()? {
            0..192 => None,
            cap => Some(f32::from(cap - 191) / 4.0),
        };
        let precision = match byte()? {
            0..192 => Precision::F32,
            _ => Precision::Int16,
        };
        let budget = match byte()? {
            0..192 => None,
            kilobytes => Some(usize::from(kilobytes - 191) * 1024),
        };
        let (theta, seed) = (f32::from(byte()?) / 128.0, u64::from(byte()?));
        let pattern = Pattern {
            seed,
            kind: byte()? % 5,
            key_scale: i32::from(byte()? % 9) - 5,
            value_scale: i32::from(byte()? % 17) - 8,
        };
        let mask = match byte()? {
            0..96 => Mask::Causal,
            keys @ 96..160 => Mask::SlidingWindow(2 * usize::from(keys - 96) + 1),
            keys @ 160..224 => Mask::Chunked(usize::from(keys - 160) + 1),
            _ => Mask::Bidirectional,
        };
        let first_codes = if let ExactWindow::Sliding(keys) = window { keys } else { 1 };
        let uncoded = store.is_quantised() && mask.most_keys().is_some_and(|most| most <= first_codes);
        // Channels of different thresholds, 0 among them.
        let channel = |j: usize| theta * (j % 4) as f32 * 2_f32.powi(pattern.key_scale);
        let thresholds = vec![(0..shape.head_dim()).map(channel).collect::<Vec<_>>(); kv_heads];
        let profile =
            ThresholdProfile::new(ModelFingerprint(0), [1, kv_heads, shape.head_dim()], thresholds.concat());
        let policy = ThresholdPolicy::Profile(profile.expect("thresholds >= 0").into());
        // Codes from the first token on: sequences are short here.
        let config = HybridConfig::new(policy).codes_from(0);
        let config = config
            .exact_window(window)
            .exact_prompt(exact_prompt)
            .exact_sinks(sinks)
            .skip_margin(skip_margin);
        Ok(Self { shape, mask, store, config, uncoded, thresholds, softcap, precision, budget, pattern })
    }

    /// Most tokens of a sequence: more than two blocks of 64, where that does not take the reference too long.
    fn most_tokens(&self) -> usize {
        if self.shape.heads() * self.shape.head_dim() <= 64 { 136 } else { 80 }
    }

    fn options(&self, isa: Isa) -> AttentionOptions {
        let budget = self.budget.map_or_else(MemoryBudget::unlimited, MemoryBudget::new);
        AttentionOptions::default()
            .isa(isa)
            .mask(self.mask)
            .budget(budget)
            .store(self.store)
            .softcap(self.softcap)
            .precision(self.precision)
            .parallel(false)
    }
}

impl Step {
    fn read(u: &mut Unstructured) -> Result<Self> {
        let [kind, size] = u.arbitrary::<[u8; 2]>()?;
        let size = usize::from(size);
        Ok(match kind % 16 {
            0..5 => Self::Forward(1),
            5..10 => Self::Forward(size % 80 + 1),
            10 => Self::Poisoned(size % 20 + 1),
            11 => Self::WrongShape,
            12..14 => Self::Truncate(size),
            14 => Self::BeginPrompt(size),
            _ => Self::Narrow,
        })
    }
}

/// Reads steps until the input ends and makes them.
///
/// # Errors
/// For an input that is too short.
pub fn run(bytes: &[u8]) -> Result<()> {
    let mut u = Unstructured::new(bytes);
    let setting = Setting::read(&mut u)?;
    let mut run = Run::new(&setting);
    // Beyond its end an input reads as zeros.
    while !u.is_empty() && run.tokens() < setting.most_tokens() {
        run.step(&Step::read(&mut u)?);
    }
    run.settle();
    Ok(())
}

/// Which part of the window's state the reference is to be told; it follows `HybridAttention`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Expected {
    window: ExactWindow,
    prompt_end: usize,
    exact_until: usize,
}

/// A call that has been made.
struct Call {
    first: usize,
    end: usize,
    expected: Expected,
    /// Keys before this one may no longer be held exactly.
    exact_from: usize,
    /// The answer of every instruction set.
    out: Vec<Vec<f32>>,
}

struct Run<'a> {
    setting: &'a Setting,
    isas: Vec<Isa>,
    kernels: Vec<HybridAttention>,
    budgets: Vec<MemoryBudget>,
    /// Inputs of the tokens in the cache.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Where an announced prompt ends.
    announced: usize,
    expected: Expected,
    exact_from: usize,
    /// Whether the caches stand for something else than what was put in.
    changed: bool,
    calls: Vec<Call>,
    step: u64,
}

impl<'a> Run<'a> {
    fn new(setting: &'a Setting) -> Self {
        let isas = Isa::available();
        let options: Vec<_> = isas.iter().map(|isa| setting.options(*isa)).collect();
        let kernel = |options: &AttentionOptions| {
            HybridAttention::new(setting.shape, setting.config.clone().options(options.clone()))
                .expect("a valid setting")
        };
        Self {
            setting,
            kernels: options.iter().map(kernel).collect(),
            budgets: options.iter().map(|options| options.budget.clone()).collect(),
            isas,
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            announced: 0,
            expected: Expected { window: setting.config.exact_window, prompt_end: 0, exact_until: 0 },
            exact_from: 0,
            changed: false,
            calls: Vec::new(),
            step: 0,
        }
    }

    fn q_row(&self) -> usize {
        self.setting.shape.heads() * self.setting.shape.head_dim()
    }

    fn kv_row(&self) -> usize {
        self.setting.shape.kv_heads() * self.setting.shape.head_dim()
    }

    fn tokens(&self) -> usize {
        self.k.len() / self.kv_row()
    }

    fn step(&mut self, step: &Step) {
        self.step += 1;
        match *step {
            Step::Forward(tokens) => {
                self.forward(tokens.min(self.setting.most_tokens() - self.tokens()), false)
            }
            Step::Poisoned(tokens) => self.forward(tokens, true),
            Step::WrongShape => self.wrong_shape(),
            Step::Truncate(len) => self.truncate(len),
            Step::BeginPrompt(tokens) => {
                self.announced = self.tokens() + tokens;
                self.kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(tokens));
            }
            Step::Narrow => self.narrow(),
        }
        for (kernel, budget) in self.kernels.iter().zip(&self.budgets) {
            assert_eq!(kernel.len(), self.tokens(), "tokens after {step:?}");
            assert_eq!(kernel.footprint().total(), budget.used(), "bytes after {step:?}");
        }
    }

    fn forward(&mut self, tokens: usize, poisoned: bool) {
        let (first, setting) = (self.tokens(), self.setting);
        let last_key = self.k.len().checked_sub(self.kv_row()).map(|start| self.k[start..].to_vec());
        let seed = setting.pattern.seed << 32 | self.step;
        let mut inputs = setting.pattern.inputs(seed, tokens, [self.q_row(), self.kv_row()], last_key);
        if poisoned {
            let place = self.step as usize * 7;
            let input = &mut inputs[place % 3];
            let at = place % input.len();
            input[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][place % 7 % 3];
        }
        let shape = |heads| [tokens, heads, setting.shape.head_dim()];
        let (of_queries, of_keys) = (shape(setting.shape.heads()), shape(setting.shape.kv_heads()));
        let [q, k, v] = &inputs;
        let mut answers = Vec::new();
        for (kernel, budget) in self.kernels.iter_mut().zip(&self.budgets) {
            let mut out = vec![f32::NAN; q.len()];
            let (used, growth) = (budget.used(), kernel.growth(tokens).expect("a kernel that knows"));
            let result = kernel.forward_heads(
                HeadsView::new(q, of_queries).expect("as long as its shape"),
                HeadsView::new(k, of_keys).expect("as long as its shape"),
                HeadsView::new(v, of_keys).expect("as long as its shape"),
                HeadsViewMut::new(&mut out, of_queries).expect("as long as its shape"),
            );
            if result.is_ok() {
                assert!(
                    budget.used() <= used + growth,
                    "grew by more than {growth}: {used} to {}",
                    budget.used()
                );
            }
            answers.push(result.map(|()| out));
        }
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        for answer in &answers {
            match answer {
                Ok(_) => assert!(!poisoned, "a number that is none has been taken"),
                Err(AttentionError::NotFinite { .. }) => assert!(poisoned, "{answer:?}"),
                Err(AttentionError::Core(CoreError::BudgetExhausted { .. })) => {
                    assert!(setting.budget.is_some(), "{answer:?}");
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(failed == 0 || failed == answers.len(), "instruction sets disagree: {answers:?}");
        let Ok(out) = answers.into_iter().collect::<std::result::Result<Vec<_>, _>>() else { return };

        let [q, k, v] = inputs;
        self.q.extend(q);
        self.k.extend(k);
        self.v.extend(v);
        let end = first + tokens;
        self.enter_window(first, end);
        self.check_bounds(&out);
        if !self.changed && setting.precision == Precision::F32 {
            let (expected, exact_from) = (self.expected, self.exact_from);
            self.calls.push(Call { first, end, expected, exact_from, out });
        }
        // What is dropped after the call: whole pages before this.
        let needed = self.window_start(end);
        if needed > 0 {
            self.exact_from = self.exact_from.max(needed).max(setting.mask.first_key(end));
        }
    }

    /// The window's state for a call, as the kernel has it.
    fn enter_window(&mut self, first: usize, end: usize) {
        let prompt_end = if first < self.announced { self.announced } else { end };
        if first < self.announced || end - first > 1 {
            let exact_until = if prompt_end <= self.setting.config.exact_prompt { prompt_end } else { 0 };
            self.expected = Expected { window: self.setting.config.exact_window, prompt_end, exact_until };
        }
    }

    /// Keys in the window, or in one of its blocks.
    fn window_keys(&self) -> usize {
        match self.expected.window {
            ExactWindow::Sliding(keys) => keys,
            ExactWindow::Block { scale } => {
                ((f64::from(scale) * self.expected.prompt_end as f64).round() as usize).max(1)
            }
            other => panic!("{other}"),
        }
    }

    /// The first key that a query from `position` on may see exactly.
    fn window_start(&self, position: usize) -> usize {
        if position < self.exact_until(self.expected) {
            return 0;
        }
        (position + 1).saturating_sub(self.window_keys())
    }

    /// Queries before this position see every key exactly.
    fn exact_until(&self, expected: Expected) -> usize {
        if self.setting.uncoded { usize::MAX } else { expected.exact_until }
    }

    fn wrong_shape(&mut self) {
        let (shape, row) = (self.setting.shape, self.kv_row());
        let (q, kv) = (vec![0.0; 2 * self.q_row()], vec![0.0; 2 * row]);
        for kernel in &mut self.kernels {
            let mut out = vec![0.0; q.len()];
            let of_queries = [2, shape.heads(), shape.head_dim()];
            let result = kernel.forward_heads(
                HeadsView::new(&q, of_queries).expect("as long as its shape"),
                HeadsView::new(&kv, [2, shape.kv_heads(), shape.head_dim()]).expect("as long as its shape"),
                HeadsView::new(&kv, [1, shape.kv_heads(), shape.head_dim()]).expect("as long as its shape"),
                HeadsViewMut::new(&mut out, of_queries).expect("as long as its shape"),
            );
            assert!(matches!(result, Err(AttentionError::Shape { .. })), "{result:?}");
        }
    }

    fn truncate(&mut self, len: usize) {
        if len > self.tokens() {
            for kernel in &mut self.kernels {
                let result = kernel.truncate(len);
                let right = matches!(result, Err(AttentionError::Core(CoreError::TruncateBeyondEnd { .. })));
                assert!(right, "{result:?}");
            }
            return;
        }
        self.settle();
        // Under a mask the next query may miss what has been dropped; then the error names the length from which on it does not.
        let len = match self.kernels[0].truncate(len) {
            Ok(()) => len,
            Err(AttentionError::Dropped { expected, got }) => {
                assert!(self.setting.mask.most_keys().is_some() && got == len && 0 < len && len < expected);
                let tokens = self.tokens();
                assert!(expected <= tokens, "a cut to {expected} of {tokens}");
                for kernel in &mut self.kernels {
                    assert!(matches!(kernel.truncate(len), Err(AttentionError::Dropped { .. })));
                    assert_eq!(kernel.len(), tokens, "a refused cut changes nothing");
                }
                expected
            }
            Err(other) => panic!("{other}"),
        };
        self.kernels.iter_mut().for_each(|kernel| kernel.truncate(len).expect("a length that it has"));
        // A block that has been cut keeps its length and slides from here on.
        self.expected.window = ExactWindow::Sliding(self.window_keys());
        self.expected.prompt_end = self.expected.prompt_end.min(len);
        self.expected.exact_until = self.expected.exact_until.min(len);
        self.announced = self.announced.min(len);
        self.exact_from = self.exact_from.min(len);
        let (q_row, kv_row) = (self.q_row(), self.kv_row());
        self.q.truncate(len * q_row);
        self.k.truncate(len * kv_row);
        self.v.truncate(len * kv_row);
    }

    fn narrow(&mut self) {
        self.settle();
        for (kernel, budget) in self.kernels.iter_mut().zip(&self.budgets) {
            let before = budget.used();
            match kernel.narrow() {
                Ok(freed) => {
                    assert_eq!(before - freed, budget.used());
                    self.changed = true;
                }
                Err(AttentionError::Core(CoreError::NotStorable { .. })) => {
                    assert_eq!(before, budget.used());
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Whatever is rounded: an answer is a mean of values.
    fn check_bounds(&self, out: &[Vec<f32>]) {
        let most = largest(&self.v);
        for (isa, out) in self.isas.iter().zip(out) {
            // Four bits with a scale that is rounded up reach a little further than the number itself.
            let right = out.iter().all(|x| x.abs() <= most * 1.02 + f32::MIN_POSITIVE);
            assert!(right, "{isa}: beyond the largest value {most}");
        }
    }

    /// Compares the calls so far with the reference.
    fn settle(&mut self) {
        let calls = std::mem::take(&mut self.calls);
        // Without skipping a query does not depend on its call, so one run of the reference serves all of a state, unless it sees to
        // the end of the call.
        let mut runs: Vec<(Expected, usize, Vec<f64>)> = Vec::new();
        for call in &calls {
            if self.setting.config.skip_margin.is_some() {
                if let Some(expected) = self.skipping_reference(call) {
                    self.compare(call, &expected);
                }
                continue;
            }
            let end = if self.setting.mask == Mask::Bidirectional { call.end } else { self.tokens() };
            let index =
                runs.iter().position(|(expected, until, _)| (*expected, *until) == (call.expected, end));
            let index = index.unwrap_or_else(|| {
                let method = self.method(call.expected);
                runs.push((call.expected, end, self.reference(&method, end).0));
                runs.len() - 1
            });
            self.compare(call, &runs[index].2);
        }
    }

    /// `None` where the reference cannot say what is skipped: tiles that start elsewhere, or a score at the margin.
    fn skipping_reference(&self, call: &Call) -> Option<Vec<f64>> {
        let method = self.method(call.expected).in_calls_of(call.end - call.first, &self.setting.shape);
        // What is skipped in one row depends on exact keys, which a cut may have lost.
        if call.first % method.tile != 0 || call.exact_from > self.held_for_sure(call) {
            return None;
        }
        let moved = |by: f32| {
            let skip_margin = method.skip_margin.map(|margin| match margin {
                SkipMargin::Length { base, slope, least } => {
                    SkipMargin::Length { base: base + by, slope, least: least + by }
                }
                SkipMargin::Fixed(margin) => SkipMargin::Fixed(margin + by),
                other => panic!("{other}"),
            });
            self.reference(&Method { skip_margin, ..method.clone() }, call.end).1
        };
        let by = 1e-4 * self.score_scale().max(1.0);
        let (out, skipped) = self.reference(&method, call.end);
        (moved(by) == skipped && moved(-by) == skipped).then_some(out)
    }

    /// The first key that some query of the call sees exactly.
    fn held_for_sure(&self, call: &Call) -> usize {
        (call.first..call.end).map(|m| self.exact_start(call, m)).min().unwrap_or(0)
    }

    /// The first key that query `m` of a call sees exactly.
    fn exact_start(&self, call: &Call, m: usize) -> usize {
        let Expected { window, prompt_end, .. } = call.expected;
        let start = match window {
            _ if m < self.exact_until(call.expected) => 0,
            ExactWindow::Sliding(keys) => (m + 1).saturating_sub(keys),
            ExactWindow::Block { scale } => {
                let keys = ((f64::from(scale) * prompt_end as f64).round() as usize).max(1);
                if m < prompt_end { m / keys * keys } else { (m + 1).saturating_sub(keys) }
            }
            other => panic!("{other}"),
        };
        start.max(self.setting.mask.first_key(m))
    }

    fn method(&self, expected: Expected) -> Method {
        let Setting { shape, mask, store, config, thresholds, softcap, .. } = self.setting;
        Method {
            mask: *mask,
            thresholds: Some(thresholds.clone()),
            exact_window: Some(expected.window),
            prompt_end: expected.prompt_end,
            exact_until: self.exact_until(expected),
            exact_sinks: config.exact_sinks,
            skip_margin: config.skip_margin,
            softcap: softcap.map(f64::from),
            store: *store,
            ..Method::dense(shape)
        }
    }

    fn reference(&self, method: &Method, tokens: usize) -> (Vec<f64>, u64) {
        let shape = &self.setting.shape;
        let q = HeadsView::new(&self.q, [tokens, shape.heads(), shape.head_dim()]);
        let k = HeadsView::new(&self.k, [tokens, shape.kv_heads(), shape.head_dim()]);
        let v = HeadsView::new(&self.v, [tokens, shape.kv_heads(), shape.head_dim()]);
        let [q, k, v] = [q, k, v].map(|view| view.expect("as long as its shape"));
        let attended = attention(shape, method, &q, &k, &v).expect("inputs of this shape");
        (attended.out, attended.skipped)
    }

    /// How large the products are that a score is the sum of.
    fn score_scale(&self) -> f32 {
        let d = self.setting.shape.head_dim() as f32;
        largest(&self.q) * largest(&self.k) * d.sqrt()
    }

    fn compare(&self, call: &Call, expected: &[f64]) {
        // Sums of single precision: relative to the values and to the products in the scores.
        let tolerance = f64::from(largest(&self.v) * 2e-5 * (self.score_scale() / 16.0).max(1.0));
        let row = self.q_row();
        for m in call.first..call.end {
            if self.exact_start(call, m) < call.exact_from {
                continue;
            }
            for (isa, out) in self.isas.iter().zip(&call.out) {
                let got = &out[(m - call.first) * row..][..row];
                for (got, expected) in got.iter().zip(&expected[m * row..]) {
                    let off = (f64::from(*got) - expected).abs();
                    assert!(
                        off <= tolerance,
                        "{isa}, query {m} of {}..{}: {got} instead of {expected}, off by {off:e} > {tolerance:e}\n{:?}\n{:?}",
                        call.first,
                        call.end,
                        call.expected,
                        self.setting,
                    );
                }
            }
        }
    }
}

impl Pattern {
    /// Queries, keys and values of the next tokens.
    fn inputs(
        &self,
        seed: u64,
        tokens: usize,
        [q_row, kv_row]: [usize; 2],
        last_key: Option<Vec<f32>>,
    ) -> [Vec<f32>; 3] {
        let mut random = Random::scattered(seed);
        let key_scale = 2_f32.powi(self.key_scale);
        let value_scale = 2_f32.powi(self.value_scale);
        let mut key = last_key.unwrap_or_else(|| vec![0.0; kv_row]);
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..tokens {
            q.extend((0..q_row).map(|_| 2.0 * random.number()));
            for (j, x) in key.iter_mut().enumerate() {
                *x = match self.kind {
                    // Walks, so that deltas are partly zero.
                    0 | 1 => 0.9 * *x + 0.5 * key_scale * random.number(),
                    // Ties.
                    2 => key_scale * (2.0 * random.number()).round(),
                    // Channels of very different size, and some that are always zero.
                    3 if j % 3 == 0 => 0.0,
                    3 => key_scale * random.number() * 2_f32.powi((j % 7) as i32 - 5),
                    // The same key again and again.
                    _ if *x == 0.0 => key_scale * random.number(),
                    _ => *x,
                };
            }
            k.extend_from_slice(&key);
            v.extend((0..kv_row).map(|j| match self.kind {
                2 => value_scale * (4.0 * random.number()).round() / 4.0,
                3 if j % 3 == 1 => 0.0,
                _ => value_scale * random.number(),
            }));
        }
        [q, k, v]
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}
