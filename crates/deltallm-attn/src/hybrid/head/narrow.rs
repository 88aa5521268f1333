//! A head in a narrower store.

use deltallm_core::{CoreError, ElementType, KvStore, MemoryBudget, Reservation, internal::RowFormat};

use super::{CodedTokens, FarKeys, HybridHead};

impl HybridHead {
    /// Checks that every number can be stored in a narrower float type.
    pub(crate) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        keys.deltas().map_or(Ok(()), |matrix| matrix.check_narrow(element))?;
        let mut rows = self.tail.rows().chain(sinks.rows()).chain([values]);
        rows.try_for_each(|rows| rows.check_narrow(element))
    }

    /// Bytes that [`narrow`](Self::narrow) charges before it gives any back.
    pub(crate) fn narrow_growth(&self, element: ElementType) -> usize {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let rows = self.tail.rows().chain(sinks.rows()).chain([values]);
        let keys = keys.deltas().map_or(0, |matrix| matrix.narrow_growth(element));
        keys + rows.map(|rows| rows.narrow_growth(element)).sum::<usize>()
    }

    /// Converts a float store to a narrower float type; `charge` pays for what [`narrow_growth`](Self::narrow_growth) says.
    pub(crate) fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        let CodedTokens { keys, values, sinks } = &mut self.coded;
        if let FarKeys::Delta(matrix) = keys {
            matrix.narrow(element, charge)?;
        }
        let mut rows = self.tail.rows_mut().chain(sinks.rows_mut()).chain([values]);
        rows.try_for_each(|rows| rows.narrow(element, charge))
    }

    /// A copy of a float store in [`KvStore::Compact`], in which exact tokens from `needed` on are not coded; `None` if it is
    /// not one.
    pub(crate) fn to_compact(&self, needed: usize, budget: &MemoryBudget) -> Result<Option<Self>, CoreError> {
        let CodedTokens { keys: FarKeys::Delta(matrix), values, sinks } = &self.coded else {
            return Ok(None);
        };
        let coded = CodedTokens {
            keys: FarKeys::Delta(matrix.to_steps(budget)?),
            values: values.converted(RowFormat::of(KvStore::Compact), budget)?,
            sinks: sinks.to_quantised(values, budget)?,
        };
        let mut copy = Self::with_codes(coded, KvStore::Compact, self.exact_sinks, budget);
        copy.tail = self.tail.to_quantised(values, budget)?;
        if copy.codes_later() {
            // Of a cache that has dropped tokens one stays coded: the next is coded by it.
            let least = if values.first() > 0 { values.first() + 1 } else { 0 };
            copy.coded.roll_back(needed.max(copy.tail.keys.first()).max(least));
        }
        Ok(Some(copy))
    }
}
