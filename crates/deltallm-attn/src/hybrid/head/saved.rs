//! A head as forks and snapshots have it, and what it is charged.

use deltallm_core::{
    CoreError, DeltaMatrix, MemoryBudget, Reservation, SnapshotError, SnapshotReader, SnapshotWriter,
    internal::{PagedRows, TokenStore, pay},
};

use super::{CodedTokens, FarKeys, HybridHead};
use crate::saved::invalid;

impl TokenStore for HybridHead {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = CodedTokens {
            keys: keys.fork(budget)?,
            values: values.fork(budget)?,
            sinks: sinks.fork(budget)?,
        };
        let row = self.row.each_ref().map(|row| Vec::with_capacity(row.capacity()));
        // Where there is no memory the fork does without. Of an open step they are not charged, and what is not charged is not shared.
        let replaced_deltas = match self.kept_deltas() {
            Some(deltas) => TokenStore::fork(deltas, budget).ok(),
            None => self.replaced_deltas.as_ref().and_then(|deltas| deltas.copied().ok()),
        };
        Ok(Self { coded, tail: self.tail.fork(budget)?, replaced_deltas, row, ..*self })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.coded.keys.uncharge();
        all.merge(self.coded.values.uncharge());
        all.merge(self.coded.sinks.uncharge());
        all.merge(self.tail.uncharge());
        self.replaced_deltas.iter_mut().for_each(|deltas| all.merge(deltas.uncharge()));
        all
    }

    fn unpaid(&self) -> usize {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let replaced = self.replaced_deltas.as_ref().map_or(0, DeltaMatrix::unpaid);
        keys.unpaid() + values.unpaid() + sinks.unpaid() + self.tail.unpaid() + replaced
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        self.coded.keys.charge_with(charge);
        self.coded.values.charge_with(charge);
        self.coded.sinks.charge_with(charge);
        self.tail.charge_with(charge);
        self.replaced_deltas.iter_mut().for_each(|deltas| deltas.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        self.coded.keys.save(writer);
        self.coded.values.save(writer);
        self.coded.sinks.save(writer);
        self.tail.save(writer);
        // Those too that nobody has paid for yet: a fork that has written nothing shares them as they are.
        let deltas = self.replaced_deltas.as_ref().filter(|_| self.rewinds);
        writer.count(usize::from(deltas.is_some()));
        deltas.into_iter().for_each(|deltas| deltas.save(writer));
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let coded = CodedTokens {
            keys: self.coded.keys.load(reader)?,
            values: self.coded.values.load(reader)?,
            sinks: self.coded.sinks.load(reader)?,
        };
        let row = self.row.each_ref().map(|row| Vec::with_capacity(row.capacity()));
        let tail = self.tail.load(reader)?;
        let replaced_deltas = match (reader.count("deltas of whole keys", 1)?, self.coded.keys.deltas()) {
            (0, _) => None,
            (_, Some(deltas)) => {
                let empty = TokenStore::fork(deltas, &MemoryBudget::unlimited())?;
                let mut loaded = empty.load(reader)?;
                drop(loaded.uncharge());
                Some(loaded)
            }
            (got, None) => return Err(invalid("deltas of whole keys", "none", got)),
        };
        let mut head = Self { coded, tail, replaced_deltas, row, ..*self };
        if let (FarKeys::Delta(_), FarKeys::Rows(rows)) = (&self.coded.keys, &head.coded.keys)
            && self.whole != Some(rows.format())
        {
            return Err(invalid("whole keys", "keys as this cache may hold them", head.coded.keys.len()));
        }
        head.check_parts()?;
        head.replaced_deltas.take_if(|deltas| pay(deltas, self.coded.values.budget()).is_err());
        Ok(head)
    }
}

impl HybridHead {
    /// Checks that the parts of a cache that has been loaded fit each other.
    fn check_parts(&self) -> Result<(), SnapshotError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = keys.len();
        if values.len() != coded || values.first() != keys.first() {
            return Err(invalid("values", "as many as keys", values.len()));
        }
        if sinks.len() != self.exact_sinks.unwrap_or(0).min(coded) {
            return Err(invalid("sinks", "as many as the settings say", sinks.len()));
        }
        let were = |deltas: &DeltaMatrix| {
            keys.deltas().is_none() && deltas.len() < coded && deltas.first() == keys.first()
        };
        if !self.replaced_deltas.as_ref().is_none_or(were) {
            return Err(invalid("deltas of whole keys", "some of the whole keys", coded));
        }
        let tail = &self.tail.keys;
        let fits = match self.exact_sinks {
            None => tail.is_empty(),
            // Between what is coded and what is exact there is no gap.
            Some(_) if self.codes_later() => tail.len() >= coded && (coded == 0 || tail.first() <= coded),
            Some(_) => tail.len() == coded,
        };
        if fits { Ok(()) } else { Err(invalid("exact keys", "those of the window", tail.len())) }
    }

    /// Whether all of this head's tokens from `first` on are held.
    pub(crate) fn holds_from(&self, first: usize) -> bool {
        let sinks = self.coded.sinks.rows().map(PagedRows::first);
        self.first() <= first && sinks.filter(|_| self.coded.sinks.len() > first).all(|sink| sink <= first)
    }
}
