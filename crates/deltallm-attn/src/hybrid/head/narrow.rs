//! A head in a narrower store.

use deltallm_core::{CoreError, KvStore, MemoryBudget, internal::RowFormat};

use super::{CodedTokens, FarKeys, HybridHead};

impl HybridHead {
    /// A copy of a float store in a narrower one. In a store that quantises, exact tokens from `needed` on are not coded. `None` if this is
    /// not a float store.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] for a number that the narrower store does not hold.
    pub(crate) fn narrowed(
        &self,
        store: KvStore,
        needed: usize,
        budget: &MemoryBudget,
    ) -> Result<Option<Self>, CoreError> {
        let CodedTokens { keys: FarKeys::Delta(matrix), values, sinks } = &self.coded else {
            return Ok(None);
        };
        let keys = match store {
            KvStore::Compact => matrix.to_steps(budget)?,
            float => matrix.to_float(float.exact(), budget)?,
        };
        let coded = CodedTokens {
            keys: FarKeys::Delta(keys),
            values: values.converted(RowFormat::of(store), budget)?,
            sinks: sinks.narrowed(store, values, budget)?,
        };
        let mut copy = Self::with_codes(coded, store, self.exact_sinks, budget);
        copy.tail = self.tail.narrowed(store, values, budget)?;
        if copy.codes_later() {
            // Of a cache that has dropped tokens one stays coded: the next is coded by it.
            let least = if values.first() > 0 { values.first() + 1 } else { 0 };
            copy.coded.roll_back(needed.max(copy.tail.keys.first()).max(least));
        }
        Ok(Some(copy))
    }
}
