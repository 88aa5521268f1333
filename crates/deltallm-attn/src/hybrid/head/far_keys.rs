//! The coded keys of a head: deltas, or whole keys.

use deltallm_core::{
    BLOCK_TOKENS, CoreError, DeltaMatrix, ElementType, HeadThresholds, KvStore, MemoryBudget, Reservation,
    SnapshotError, SnapshotReader, SnapshotWriter,
    internal::{PagedRows, RowFormat, TokenStore, exchange, most_key_bytes, whole_keys},
};
use half::f16;

/// The keys of a head that are coded.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each kv head")]
pub(crate) enum FarKeys {
    Delta(DeltaMatrix),
    /// Whole: in [`KvStore::Int8`], and in [`KvStore::Compact`] where deltas would take more.
    Rows(PagedRows),
}

impl FarKeys {
    pub(super) fn new(
        store: KvStore,
        thresholds: HeadThresholds,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let channels = thresholds.start().len();
        Ok(match store {
            KvStore::Int8 => {
                Self::Rows(PagedRows::new(channels, RowFormat::Int8, BLOCK_TOKENS, budget).centered())
            }
            KvStore::Compact => Self::Delta(DeltaMatrix::in_steps(thresholds, budget)?),
            float => Self::Delta(DeltaMatrix::new(thresholds, float.exact(), budget)?),
        })
    }

    /// The deltas, unless keys are coded whole.
    pub(crate) fn deltas(&self) -> Option<&DeltaMatrix> {
        match self {
            Self::Delta(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// The float type whose numbers fit.
    pub(super) fn takes(&self) -> ElementType {
        match self {
            Self::Delta(matrix) => matrix.takes(),
            Self::Rows(rows) => rows.format().takes(),
        }
    }

    pub(super) fn channels(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.channels(),
            Self::Rows(rows) => rows.channels(),
        }
    }

    /// The first token that is held.
    pub(super) fn first(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.first(),
            Self::Rows(rows) => rows.first(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    pub(super) fn push(&mut self, key: &[f32]) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.push_checked(key),
            Self::Rows(rows) => rows.push_checked(key),
        }
    }

    pub(super) fn truncate(&mut self, len: usize) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.truncate(len),
            Self::Rows(rows) => rows.truncate(len),
        }
    }

    pub(super) fn drop_before(&mut self, first: usize) {
        match self {
            Self::Delta(matrix) => matrix.drop_before(first),
            Self::Rows(rows) => rows.drop_before(first),
        }
    }

    pub(super) fn growth(&self, tokens: usize) -> usize {
        match self {
            Self::Delta(matrix) => matrix.growth(tokens),
            Self::Rows(rows) => rows.growth(tokens),
        }
    }

    /// Bytes that [`keep_small`](Self::keep_small) may charge when `tokens` keys come: nothing, unless the deltas stay, for a fork or because they
    /// are `kept`.
    pub(super) fn growth_of_rows(&self, tokens: usize, kept: bool, whole: RowFormat) -> usize {
        let Self::Delta(matrix) = self else { return 0 };
        let (channels, held) = (matrix.channels(), matrix.len() - matrix.first());
        let most = most_key_bytes(whole, channels, held + 1);
        let bytes = matrix.key_bytes() + matrix.bookkeeping_bytes();
        let becomes_whole = tokens > 0 && matrix.bytes_with_next() > most
            || tokens > 1 && bytes.saturating_add(matrix.growth(tokens)) > most;
        if becomes_whole && (kept || matrix.is_shared()) {
            most_key_bytes(whole, channels, held.saturating_add(tokens))
        } else {
            0
        }
    }

    /// Makes sure that one more key takes no more than [`most_key_bytes`]: keys whose deltas would are held `whole`, those before as
    /// the deltas have them. Returns the deltas that are no longer held.
    pub(super) fn keep_small(&mut self, whole: RowFormat) -> Result<Option<DeltaMatrix>, CoreError> {
        let Self::Delta(matrix) = self else { return Ok(None) };
        let channels = matrix.channels();
        if matrix.bytes_with_next() <= most_key_bytes(whole, channels, matrix.len() - matrix.first() + 1) {
            return Ok(None);
        }
        let unlimited = MemoryBudget::unlimited();
        let first = matrix.first();
        let mut rows = PagedRows::starting_at(first, channels, whole, BLOCK_TOKENS, &unlimited).centered();
        let mut keys = Vec::new();
        for block in first / BLOCK_TOKENS..matrix.blocks() {
            matrix.reconstruct(block, &mut keys);
            keys.iter_mut().for_each(|x| *x = x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            keys.chunks_exact(channels).try_for_each(|key| rows.push(key))?;
        }
        Ok(match exchange(self, Self::Rows(rows))? {
            Self::Delta(deltas) => Some(deltas),
            Self::Rows(_) => None,
        })
    }

    /// Bytes of the keys, and of the table of their blocks.
    pub(super) fn bytes(&self) -> (usize, usize) {
        match self {
            Self::Delta(matrix) => (matrix.key_bytes(), matrix.bookkeeping_bytes()),
            Self::Rows(rows) => (rows.held_bytes(), rows.bookkeeping_bytes()),
        }
    }
}

impl TokenStore for FarKeys {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        Ok(match self {
            Self::Delta(matrix) => Self::Delta(TokenStore::fork(matrix, budget)?),
            Self::Rows(rows) => Self::Rows(rows.fork(budget)?),
        })
    }

    fn uncharge(&mut self) -> Reservation {
        match self {
            Self::Delta(matrix) => matrix.uncharge(),
            Self::Rows(rows) => rows.uncharge(),
        }
    }

    fn unpaid(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.unpaid(),
            Self::Rows(rows) => rows.unpaid(),
        }
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        match self {
            Self::Delta(matrix) => matrix.charge_with(charge),
            Self::Rows(rows) => rows.charge_with(charge),
        }
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        match self {
            Self::Delta(matrix) => {
                writer.text("deltas");
                matrix.save(writer);
            }
            Self::Rows(rows) => {
                writer.text(if rows.format() == RowFormat::Int8 { "keys in 8 bits" } else { "keys in f16" });
                rows.save(writer);
            }
        }
    }

    /// Keys that have become whole may stand where deltas are expected.
    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        match (&*reader.text()?, self) {
            ("deltas", Self::Delta(matrix)) => Ok(Self::Delta(matrix.load(reader)?)),
            ("keys in 8 bits", Self::Rows(rows)) => Ok(Self::Rows(rows.load(reader)?)),
            (form @ ("keys in 8 bits" | "keys in f16"), Self::Delta(matrix)) => {
                let rows = whole_keys(form == "keys in f16");
                let rows = PagedRows::new(matrix.channels(), rows, BLOCK_TOKENS, matrix.budget());
                Ok(Self::Rows(rows.centered().load(reader)?))
            }
            (got, _) => {
                let (expected, got) = ("as this cache holds them".to_owned(), got.to_owned());
                Err(SnapshotError::Other { what: "far keys", expected, got })
            }
        }
    }
}
