//! Keys in 4 bits, with a scale and a minimum per channel.

use std::ops::Range;

use half::f16;

use crate::{
    BLOCK_TOKENS, Charge, CoreError, ElementType, GROUP,
    budget::{reserve_slot, table_capacity},
    quantise::{from_int4_columns, nibble_bytes, to_int4_columns},
};

/// Keys of one kv head in 4 bits per channel. Keys differ much between channels and little between neighbouring tokens,
/// so a scale and a minimum belong to one channel and [`GROUP`] tokens (KIVI, arXiv 2402.02750). The tokens of an unfinished
/// group wait in f16.
///
/// ```
/// use deltallm_core::{GroupedKeys, MemoryBudget};
///
/// let mut charge = MemoryBudget::unlimited().charge();
/// let mut keys = GroupedKeys::new(2);
/// for t in 0..40 {
///     keys.push(&[t as f32, -1.0], &mut charge)?;
/// }
/// let mut scratch = Vec::new();
/// let rows = keys.read(30..33, &mut scratch);
/// assert!((rows[0] - 30.0).abs() < 31.0 / 30.0 + 0.01); // half a step of the first group
/// assert_eq!(rows[1..], [-1.0, rows[2], -1.0, 32.0, -1.0]); // the second group is waiting
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct GroupedKeys {
    channels: usize,
    pages: Vec<Page>,
    /// Rows of the unfinished group, with room for a whole one once the first key has come.
    waiting: Vec<f16>,
    len: usize,
}

/// Two groups.
#[derive(Debug)]
struct Page {
    /// `[BLOCK_TOKENS, nibble_bytes]`.
    codes: Vec<u8>,
    /// `[groups, 2, channels]`: scales, then minima.
    ranges: Vec<f16>,
}

/// [`GROUP`] keys of [`GroupedKeys`]: `key[t][j] = minima[j] + code[t][j] * scales[j]`.
#[derive(Debug, Clone, Copy)]
pub struct KeyGroup<'a> {
    /// `[tokens, bytes]`; the layout of a row is that of [`RowsPage::Int4`](crate::RowsPage::Int4).
    pub codes: &'a [u8],
    /// `[channels]`.
    pub scales: &'a [f16],
    /// `[channels]`.
    pub minima: &'a [f16],
}

impl GroupedKeys {
    /// An empty store of keys of `channels` (at least 1) numbers.
    pub fn new(channels: usize) -> Self {
        Self { channels: channels.max(1), pages: Vec::new(), waiting: Vec::new(), len: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers in a key.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// First token of the unfinished group.
    pub fn first_waiting(&self) -> usize {
        self.len / GROUP * GROUP
    }

    /// Keys of the unfinished group, `[tokens, channels]`.
    pub fn waiting(&self) -> &[f16] {
        &self.waiting
    }

    /// The keys `group * GROUP .. (group + 1) * GROUP`, or `None` while the group is not finished.
    pub fn group(&self, group: usize) -> Option<KeyGroup<'_>> {
        if (group + 1) * GROUP > self.len {
            return None;
        }
        let page = self.pages.get(group / GROUPS)?;
        let codes = page.codes.chunks_exact(page.codes.len() / GROUPS).nth(group % GROUPS)?;
        let ranges = page.ranges.chunks_exact(2 * self.channels).nth(group % GROUPS)?;
        let (scales, minima) = ranges.split_at(self.channels);
        Some(KeyGroup { codes, scales, minima })
    }

    /// Appends a key (`[channels]`). Memory is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push(&mut self, key: &[f32], charge: &mut Charge) -> Result<(), CoreError> {
        if key.len() != self.channels {
            return Err(CoreError::Channels { expected: self.channels, got: key.len() });
        }
        ElementType::F16.check(key)?;
        if self.waiting.capacity() == 0 {
            charge.grow(self.waiting_bytes())?;
            self.waiting.reserve_exact(GROUP * self.channels);
        }
        let finishes = (self.len + 1).is_multiple_of(GROUP);
        if finishes && self.len / BLOCK_TOKENS == self.pages.len() {
            reserve_slot(&mut self.pages, charge)?;
            charge.grow(self.page_bytes())?;
            self.pages.push(Page {
                codes: vec![0; BLOCK_TOKENS * nibble_bytes(self.channels)],
                ranges: vec![f16::ZERO; GROUPS * 2 * self.channels],
            });
        }
        self.waiting.extend(key.iter().map(|x| f16::from_f32(*x)));
        if finishes {
            self.finish_group();
        }
        self.len += 1;
        Ok(())
    }

    /// Codes the waiting keys.
    fn finish_group(&mut self) {
        let group = self.len / GROUP;
        let rows: Vec<f32> = self.waiting.iter().map(|x| x.to_f32()).collect();
        if let Some(page) = self.pages.get_mut(group / GROUPS) {
            let bytes = page.codes.len() / GROUPS;
            let codes = &mut page.codes[group % GROUPS * bytes..][..bytes];
            let ranges = &mut page.ranges[group % GROUPS * 2 * self.channels..][..2 * self.channels];
            let (scales, minima) = ranges.split_at_mut(self.channels);
            to_int4_columns(&rows, codes, scales, minima);
        }
        self.waiting.clear();
    }

    /// Forgets every token from `len` on. Keys of a group that is no longer whole wait again, as they come back from their
    /// codes; whoever has them exactly can [`restore`](Self::restore) them.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize, charge: &mut Charge) -> Result<(), CoreError> {
        if len > self.len {
            return Err(CoreError::TruncateBeyondEnd { len: self.len, got: len });
        }
        if len < self.first_waiting() {
            let mut scratch = Vec::new();
            let rows = self.read(len / GROUP * GROUP..len, &mut scratch);
            let rows: Vec<f16> = rows.iter().map(|x| f16::from_f32(*x)).collect();
            self.waiting.clear();
            self.waiting.extend_from_slice(&rows);
        } else {
            self.waiting.truncate(len % GROUP * self.channels);
        }
        let pages = (len / GROUP).div_ceil(GROUPS);
        charge.shrink((self.pages.len() - pages) * self.page_bytes());
        self.pages.truncate(pages);
        self.len = len;
        Ok(())
    }

    /// Replaces a waiting key (`[channels]`) by its exact form. Keys that do not wait stay as they are.
    pub fn restore(&mut self, token: usize, key: &[f32]) {
        let row = token.checked_sub(self.first_waiting());
        let row = row.and_then(|row| self.waiting.chunks_exact_mut(self.channels).nth(row));
        for (stored, x) in row.into_iter().flatten().zip(key) {
            *stored = f16::from_f32(*x);
        }
    }

    /// The keys of `tokens` as f32, `[tokens, channels]`, in `scratch`. All of them must be held.
    pub fn read<'a>(&self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.clear();
        let bytes = nibble_bytes(self.channels);
        let mut token = tokens.start;
        while token < tokens.end {
            let (group, row) = (token / GROUP, token % GROUP);
            let rows = (GROUP - row).min(tokens.end - token);
            match self.group(group) {
                Some(KeyGroup { codes, scales, minima }) => {
                    from_int4_columns(&codes[row * bytes..][..rows * bytes], scales, minima, scratch);
                }
                None => {
                    let waiting = &self.waiting[row * self.channels..][..rows * self.channels];
                    scratch.extend(waiting.iter().map(|x| x.to_f32()));
                }
            }
            token += rows;
        }
        scratch
    }

    /// Bytes that appending `tokens` keys would charge.
    pub fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        let waiting = if self.waiting.capacity() == 0 { self.waiting_bytes() } else { 0 };
        let pages = (self.len.saturating_add(tokens) / GROUP).div_ceil(GROUPS).max(self.pages.len());
        let new_slots = table_capacity(self.pages.capacity(), pages) - self.pages.capacity();
        (pages - self.pages.len())
            .saturating_mul(self.page_bytes())
            .saturating_add(new_slots.saturating_mul(size_of::<Page>()))
            .saturating_add(waiting)
    }

    /// Bytes of all keys, the room for waiting ones included.
    pub fn held_bytes(&self) -> usize {
        self.pages.len() * self.page_bytes() + self.waiting.capacity() * size_of::<f16>()
    }

    /// Bytes of the table of pages.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.pages.capacity() * size_of::<Page>()
    }

    fn page_bytes(&self) -> usize {
        page_bytes(self.channels)
    }

    fn waiting_bytes(&self) -> usize {
        GROUP * self.channels * size_of::<f16>()
    }

    /// Bytes of the keys and of the table of pages once `tokens` keys have been appended.
    pub(crate) fn planned(channels: usize, tokens: usize) -> (usize, usize) {
        let pages = (tokens / GROUP).div_ceil(GROUPS);
        let waiting = if tokens > 0 { GROUP * channels * size_of::<f16>() } else { 0 };
        (pages * page_bytes(channels) + waiting, table_capacity(0, pages) * size_of::<Page>())
    }
}

/// Groups in a page.
const GROUPS: usize = BLOCK_TOKENS / GROUP;

fn page_bytes(channels: usize) -> usize {
    BLOCK_TOKENS * nibble_bytes(channels) + GROUPS * 2 * channels * size_of::<f16>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBudget;

    fn key(t: usize) -> Vec<f32> {
        (0..5).map(|j| (0.3 * (t * (j + 1)) as f32).sin() + j as f32).collect()
    }

    fn filled(tokens: usize, charge: &mut Charge) -> GroupedKeys {
        let mut keys = GroupedKeys::new(5);
        (0..tokens).for_each(|t| keys.push(&key(t), charge).unwrap());
        keys
    }

    fn all(keys: &GroupedKeys) -> Vec<f32> {
        keys.read(0..keys.len(), &mut Vec::new()).to_vec()
    }

    #[test]
    fn every_cut_whose_keys_are_restored_equals_a_fresh_start() {
        let budget = MemoryBudget::unlimited();
        for len in 0..=130 {
            let mut charge = budget.charge();
            let mut keys = filled(130, &mut charge);
            keys.truncate(len, &mut charge).unwrap();
            (keys.first_waiting()..len).for_each(|t| keys.restore(t, &key(t)));
            for t in len..200 {
                let (held, growth) = (charge.bytes(), keys.growth(1));
                keys.push(&key(t), &mut charge).unwrap();
                assert_eq!(charge.bytes() - held, growth);
                assert_eq!(charge.bytes(), keys.held_bytes() + keys.bookkeeping_bytes(), "{len} {t}");
            }
            assert_eq!(all(&keys), all(&filled(200, &mut budget.charge())), "cut at {len}");
        }
    }

    #[test]
    fn a_cut_without_exact_keys_keeps_what_the_codes_say() {
        let mut charge = MemoryBudget::unlimited().charge();
        let mut keys = filled(100, &mut charge);
        let before = all(&keys);
        keys.truncate(50, &mut charge).unwrap();
        let waiting = before[32 * 5..50 * 5].iter().map(|x| f16::from_f32(*x).to_f32());
        let expected: Vec<f32> = before[..32 * 5].iter().copied().chain(waiting).collect();
        assert_eq!(all(&keys), expected);
        assert!(keys.truncate(51, &mut charge).is_err());
    }

    #[test]
    fn a_plan_is_exact_and_a_page_beyond_the_budget_is_refused() {
        let (mut charge, mut keys) = (MemoryBudget::unlimited().charge(), GroupedKeys::new(5));
        for t in 0..700 {
            assert_eq!(
                GroupedKeys::planned(5, t),
                (keys.held_bytes(), keys.bookkeeping_bytes()),
                "{t} tokens"
            );
            keys.push(&key(t), &mut charge).unwrap();
        }
        let budget = MemoryBudget::new(1500);
        let mut charge = budget.charge();
        let mut keys = GroupedKeys::new(5);
        let stored = (0..1000).take_while(|t| keys.push(&key(*t), &mut charge).is_ok()).count();
        assert!(stored > 32 && stored % 32 == 31, "{stored}");
        assert_eq!(all(&keys), all(&filled(stored, &mut MemoryBudget::unlimited().charge())));
        assert!(keys.push(&[f32::NAN; 5], &mut charge).is_err());
    }
}
