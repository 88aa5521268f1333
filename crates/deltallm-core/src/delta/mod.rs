//! The delta matrix: the coded keys of one kv head, and the list of the forms they are held in.
//!
//! In reading order: [`rule`] (which channels are transmitted), [`encoder`] (the rule alone), [`codec`] (what a form has to do),
//! [`float`] and [`steps`] (the forms), [`matrix`] (blocks of any of them), [`loops`] and [`differences`] (what runs inside), [`mask`] (sets
//! of channels) and [`buffer`] (numbers in a float type).

mod buffer;
mod codec;
mod differences;
mod encoder;
mod float;
mod loops;
mod mask;
mod matrix;
mod rule;
mod steps;

use half::{bf16, f16};

use crate::{
    budget::{MemoryBudget, Reservation, StoreBytes, table_capacity},
    check::check_row,
    element::ElementType,
    error::CoreError,
    kv_store::{BLOCK_TOKENS, KvStore},
    rows::{Layout, RowFormat},
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
    threshold::HeadThresholds,
    token_store::TokenStore,
};
use codec::Codec;
use float::{FloatCodec, FloatView};
use matrix::{Block, Matrix};
use rule::Rule;
use steps::StepCodec;

pub use encoder::DeltaEncoder;
pub use float::FloatCodes;
pub use steps::{Escape, StepCodes};

/// Coded keys of one kv head in blocks of [`BLOCK_TOKENS`] tokens.
///
/// Per token a block stores a bit mask over the channels and the *new values* of the channels that were transmitted,
/// packed. New values rather than differences, so that the reconstruction is exact in any storage type. Each block
/// starts with a *key frame*, the reconstruction just before its first token, so a block can be read on its own.
///
/// Values are of a float type, or 8-bit codes ([`in_steps`](Self::in_steps)), of which differences are stored: codes add up exactly.
///
/// ```
/// use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget};
///
/// let budget = MemoryBudget::unlimited();
/// let mut keys = DeltaMatrix::new(vec![0.5, 0.5], ElementType::F32, &budget)?;
/// for key in [[1.0, 2.0], [1.1, 3.0], [1.2, 3.1]] {
///     keys.push(&key)?;
/// }
/// let mut rows = Vec::new();
/// keys.reconstruct(0, &mut rows);
/// assert_eq!(rows, [1.0, 2.0, 1.0, 3.0, 1.0, 3.0]);
/// assert_eq!(keys.nonzeros(), 3); // of 6: the first key and one channel of the second
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct DeltaMatrix(Form);

/// The forms of coded keys. Another one is a [`Codec`] in a file of its own, a line in each `match` on this and on
/// [`DeltaCodes`], and a kernel in attention that reads it.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each kv head")]
enum Form {
    Float(Matrix<FloatCodec>),
    Steps(Matrix<StepCodec>),
}

/// A block of a [`DeltaMatrix`] as it is held: up to [`BLOCK_TOKENS`] tokens.
#[derive(Debug, Clone, Copy)]
pub struct DeltaBlock<'a> {
    /// The channels that each token transmits, `[tokens, words]`: channel `j` is bit `j % 64` of word `j / 64`.
    pub masks: &'a [u64],
    /// The key frame and the transmitted values.
    pub codes: DeltaCodes<'a>,
}

/// The numbers of a [`DeltaBlock`]: what kernels match on.
#[derive(Debug, Clone, Copy)]
pub enum DeltaCodes<'a> {
    /// binary32.
    F32(FloatCodes<'a, f32>),
    /// binary16.
    F16(FloatCodes<'a, f16>),
    /// bfloat16.
    Bf16(FloatCodes<'a, bf16>),
    /// 8-bit codes.
    Steps(StepCodes<'a>),
}

impl<'a> From<FloatView<'a>> for DeltaCodes<'a> {
    fn from(view: FloatView<'a>) -> Self {
        match view {
            FloatView::F32(codes) => Self::F32(codes),
            FloatView::F16(codes) => Self::F16(codes),
            FloatView::Bf16(codes) => Self::Bf16(codes),
        }
    }
}

impl DeltaMatrix {
    /// An empty matrix that charges `budget`; `thresholds` is `[channels]`, in the units of the keys.
    ///
    /// # Errors
    /// As [`DeltaEncoder::new`].
    pub fn new(
        thresholds: impl Into<HeadThresholds>,
        element: ElementType,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let rule = Rule::new(thresholds.into())?;
        let codec = FloatCodec::new(element, rule.channels());
        Ok(Self(Form::Float(Matrix::new(rule, codec, budget))))
    }

    /// An empty matrix of 8-bit codes. A transmitted value is `code * step`; a channel's step is its threshold at the
    /// beginning of the block, so the code is off by less than the threshold, and the encoder compares with what the codes
    /// give back: `|k[j] - khat[j]| <= threshold[j]`, always. A value that no code comes near enough to *escapes*
    /// and is stored as f32: one beyond 127 steps, and every one of a channel whose threshold is zero or almost
    /// zero. That is correct and large: thresholds of zero take more room here than in f32.
    ///
    /// # Errors
    /// As [`DeltaEncoder::new`]; [`CoreError::Channels`] for more than 65536 channels.
    pub fn in_steps(thresholds: impl Into<HeadThresholds>, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let rule = Rule::new(thresholds.into())?;
        let codec = StepCodec::new(&rule.thresholds)?;
        Ok(Self(Form::Steps(Matrix::new(rule, codec, budget))))
    }

    /// The same keys. Whole blocks are shared, and charged once whoever holds them; what is coded later is each one's own.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`] for the table of blocks and the last one.
    ///
    /// ```
    /// use deltallm_core::{DeltaMatrix, ElementType, MemoryBudget};
    ///
    /// let budget = MemoryBudget::unlimited();
    /// let mut keys = DeltaMatrix::new(vec![0.5; 64], ElementType::F16, &budget)?;
    /// (0..1000).try_for_each(|t| keys.push(&[t as f32; 64]))?;
    /// let alone = budget.used();
    /// let mut fork = keys.fork()?;
    /// fork.push(&[-1.0; 64])?;
    /// assert_eq!((keys.len(), fork.len()), (1000, 1001));
    /// assert!(budget.used() < alone + alone / 10);
    /// # Ok::<(), deltallm_core::CoreError>(())
    /// ```
    pub fn fork(&self) -> Result<Self, CoreError> {
        TokenStore::fork(self, self.budget())
    }

    fn rule(&self) -> &Rule {
        match &self.0 {
            Form::Float(matrix) => matrix.rule(),
            Form::Steps(matrix) => matrix.rule(),
        }
    }

    fn bytes(&self) -> StoreBytes {
        match &self.0 {
            Form::Float(matrix) => matrix.bytes(),
            Form::Steps(matrix) => matrix.bytes(),
        }
    }

    /// The account that is charged.
    pub fn budget(&self) -> &MemoryBudget {
        match &self.0 {
            Form::Float(matrix) => matrix.budget(),
            Form::Steps(matrix) => matrix.budget(),
        }
    }

    /// Channels of a key.
    pub fn channels(&self) -> usize {
        self.rule().channels()
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub fn thresholds(&self) -> Vec<f32> {
        self.rule().next_thresholds()
    }

    /// Tokens coded.
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.len(),
            Form::Steps(matrix) => matrix.len(),
        }
    }

    /// The first token that is held: those before it have been [dropped](Self::drop_before).
    pub fn first(&self) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.first(),
            Form::Steps(matrix) => matrix.first(),
        }
    }

    /// Whether no token has been coded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Transmitted channels over all tokens: the nonzeros of the delta matrix.
    pub fn nonzeros(&self) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.nonzeros(),
            Form::Steps(matrix) => matrix.nonzeros(),
        }
    }

    /// What [`nonzeros`](Self::nonzeros) will be once these keys, `[tokens, channels]`, have been coded too.
    #[doc(hidden)]
    pub fn nonzeros_with(&self, keys: &[f32]) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.nonzeros_with(keys),
            Form::Steps(matrix) => matrix.nonzeros_with(keys),
        }
    }

    /// Blocks with at least one token, those that have been dropped included.
    pub fn blocks(&self) -> usize {
        self.len().div_ceil(BLOCK_TOKENS)
    }

    /// Codes and appends one key (`[channels]`). Memory is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; the matrix is unchanged
    /// then.
    pub fn push(&mut self, key: &[f32]) -> Result<(), CoreError> {
        check_row(key, self.channels(), self.takes())?;
        self.push_checked(key)
    }

    /// The same with a key that is known to have the right length and to fit the form ([`takes`](Self::takes)).
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; the matrix is unchanged then.
    #[doc(hidden)]
    pub fn push_checked(&mut self, key: &[f32]) -> Result<(), CoreError> {
        debug_assert!(key.len() == self.channels() && self.takes().holds(key));
        match &mut self.0 {
            Form::Float(matrix) => matrix.push(key),
            Form::Steps(matrix) => matrix.push(key),
        }
    }

    /// The float type whose numbers can be coded.
    #[doc(hidden)]
    pub fn takes(&self) -> ElementType {
        match &self.0 {
            Form::Float(matrix) => matrix.codec().takes(),
            Form::Steps(matrix) => matrix.codec().takes(),
        }
    }

    /// Forgets every token from `len` on. The matrix and its encoder are then as they were when token `len - 1` had
    /// just been pushed.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`]; [`CoreError::Dropped`] for a length, other than 0, whose last token has been dropped.
    pub fn truncate(&mut self, len: usize) -> Result<(), CoreError> {
        if len > self.len() {
            return Err(CoreError::TruncateBeyondEnd { len: self.len(), got: len });
        }
        if len > 0 && len <= self.first() {
            return Err(CoreError::Dropped { first: self.first(), got: len });
        }
        if len < self.len() {
            match &mut self.0 {
                Form::Float(matrix) => matrix.truncate(len),
                Form::Steps(matrix) => matrix.truncate(len),
            }
        }
        Ok(())
    }

    /// Drops blocks that hold nothing but tokens before `first`: nobody attends to them any more. Their tokens still count, and
    /// so do their nonzeros.
    pub fn drop_before(&mut self, first: usize) {
        match &mut self.0 {
            Form::Float(matrix) => matrix.drop_before(first),
            Form::Steps(matrix) => matrix.drop_before(first),
        }
    }

    /// A copy in a float type that charges `budget`, with the same transmitted channels. What has been coded before is off by at most its threshold
    /// *plus* the rounding error of the type, because it was compared with the reference before rounding (`docs/method.md`, equation 7);
    /// keys that come are compared with the reference as rounded.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large for the type; [`CoreError::BudgetExhausted`].
    pub fn to_float(&self, element: ElementType, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let codec = FloatCodec::new(element, self.channels());
        Ok(Self(Form::Float(self.converted(codec, budget)?)))
    }

    /// A copy [in steps](Self::in_steps) that charges `budget`, with the same transmitted channels. What has been coded before is off by at most its
    /// threshold *plus* half a step, or another threshold (`docs/method.md`, equation 7); keys that come keep to the threshold.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; [`CoreError::Channels`] for more than 65536 channels.
    pub fn to_steps(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let codec = StepCodec::new(&self.rule().thresholds)?;
        Ok(Self(Form::Steps(self.converted(codec, budget)?)))
    }

    /// The same transmitted channels in the codes of a codec.
    fn converted<C: Codec>(&self, codec: C, budget: &MemoryBudget) -> Result<Matrix<C>, CoreError> {
        match &self.0 {
            Form::Float(matrix) => matrix.converted(codec, budget),
            Form::Steps(matrix) => matrix.converted(codec, budget),
        }
    }

    /// Bytes that appending `tokens` keys would charge at most; for one key exactly.
    pub fn growth(&self, tokens: usize) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.growth(tokens),
            Form::Steps(matrix) => matrix.growth(tokens),
        }
    }

    /// Whether a fork holds some of the blocks too.
    #[doc(hidden)]
    pub fn is_shared(&self) -> bool {
        match &self.0 {
            Form::Float(matrix) => matrix.is_shared(),
            Form::Steps(matrix) => matrix.is_shared(),
        }
    }

    /// A copy that shares nothing with this matrix, and that nobody has been charged.
    ///
    /// # Errors
    /// None that is known: memory that is not charged has no limit.
    #[doc(hidden)]
    pub fn copied(&self) -> Result<Self, CoreError> {
        Ok(Self(match &self.0 {
            Form::Float(matrix) => Form::Float(matrix.copied()?),
            Form::Steps(matrix) => Form::Steps(matrix.copied()?),
        }))
    }

    /// Bytes once one more key has been pushed; in steps as if no key had ever been taken back, so that what is decided by it
    /// depends on the keys alone.
    #[doc(hidden)]
    pub fn bytes_with_next(&self) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.bytes().total() + matrix.growth(1),
            Form::Steps(matrix) => matrix.bytes_with_next().total(),
        }
    }

    /// The reconstructed keys of block `block`, `[tokens, channels]`, into `rows` (resized); nothing for a block that is not
    /// there, or not any more.
    pub fn reconstruct(&self, block: usize, rows: &mut Vec<f32>) {
        rows.clear();
        match &self.0 {
            Form::Float(matrix) => matrix.block(block).into_iter().for_each(|block| matrix.keys(block, rows)),
            Form::Steps(matrix) => matrix.block(block).into_iter().for_each(|block| matrix.keys(block, rows)),
        }
    }

    /// Block `block` as it is held, or `None` for a block that is not there, or not any more.
    #[doc(hidden)]
    pub fn coded(&self, block: usize) -> Option<DeltaBlock<'_>> {
        match &self.0 {
            Form::Float(matrix) => {
                matrix.block(block).map(|Block { masks, codes }| DeltaBlock { masks, codes: codes.into() })
            }
            Form::Steps(matrix) => matrix.block(block).map(|Block { masks, codes }| DeltaBlock {
                masks,
                codes: DeltaCodes::Steps(matrix.codec().codes(codes)),
            }),
        }
    }

    /// Bytes of the coded keys, the open block's spare room included.
    pub fn key_bytes(&self) -> usize {
        self.bytes().data
    }

    /// Bytes of the table of blocks.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.bytes().table
    }
}

impl TokenStore for DeltaMatrix {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        Ok(Self(match &self.0 {
            Form::Float(matrix) => Form::Float(matrix.fork(budget)?),
            Form::Steps(matrix) => Form::Steps(matrix.fork(budget)?),
        }))
    }

    fn uncharge(&mut self) -> Reservation {
        match &mut self.0 {
            Form::Float(matrix) => matrix.uncharge(),
            Form::Steps(matrix) => matrix.uncharge(),
        }
    }

    fn unpaid(&self) -> usize {
        match &self.0 {
            Form::Float(matrix) => matrix.unpaid(),
            Form::Steps(matrix) => matrix.unpaid(),
        }
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        match &mut self.0 {
            Form::Float(matrix) => matrix.charge_with(charge),
            Form::Steps(matrix) => matrix.charge_with(charge),
        }
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        match &self.0 {
            Form::Float(matrix) => {
                writer.text(&matrix.codec().takes().to_string());
                matrix.save(writer);
            }
            Form::Steps(matrix) => matrix.save(writer),
        }
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        Ok(Self(match &self.0 {
            Form::Float(matrix) => {
                let element = reader.text()?;
                reader.expect("deltas in", matrix.codec().takes().to_string(), element)?;
                Form::Float(matrix.load(reader)?)
            }
            Form::Steps(matrix) => Form::Steps(matrix.load(reader)?),
        }))
    }
}

/// What a plan expects of a block of coded keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    /// Transmitted values.
    pub(crate) sent: usize,
    /// Differences of codes that take 8 bits, and values that no code holds; in steps.
    pub(crate) wide: usize,
    pub(crate) escapes: usize,
}

/// Bytes of the delta matrix of `store` once it holds `tokens` (at least 1) keys.
pub(crate) fn planned_bytes(
    store: KvStore,
    channels: usize,
    tokens: usize,
    expected: Expected,
) -> StoreBytes {
    let Expected { sent, wide, escapes } = expected;
    match store {
        KvStore::Compact => {
            let codes = StepCodec::planned_bytes(channels, sent, wide, escapes);
            Matrix::<StepCodec>::bytes_at(tokens, channels, codes)
        }
        float => {
            let codes = FloatCodec::planned_bytes(float.exact(), channels, sent);
            Matrix::<FloatCodec>::bytes_at(tokens, channels, codes)
        }
    }
}

/// How a head in [`KvStore::Compact`] holds its keys beside a window where their deltas would take more: whole, in 8 bits. Where tokens are `dropped` from
/// the front in f16, because 8 bits are relative to the mean of the first page.
pub fn whole_keys(dropped: bool) -> RowFormat {
    if dropped { ElementType::F16.into() } else { RowFormat::Int8 }
}

/// The most that the coded keys of such a head may take: as much as [whole ones](whole_keys) in that format, and
/// the room of the block that is being written, should that be more than a page.
pub fn most_key_bytes(format: RowFormat, channels: usize, tokens: usize) -> usize {
    let rows = |tokens: usize| {
        let pages = tokens.div_ceil(BLOCK_TOKENS);
        let rows = Layout { channels, format, page_tokens: BLOCK_TOKENS, centered: true };
        rows.bytes_from(pages, table_capacity(0, pages), [pages > 0, pages > 1]).total()
    };
    let nothing = Expected { sent: 0, wide: 0, escapes: 0 };
    let open = planned_bytes(KvStore::Compact, channels, 1, nothing).total();
    rows(tokens).saturating_add(open.saturating_sub(rows(1)))
}
