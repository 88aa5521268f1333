//! Rows of keys or values, in pages.

use std::{collections::VecDeque, ops::Range};

use deltallm_simd::{Isa, dispatch};
use half::{bf16, f16};

use crate::{
    Charge, CoreError, ElementType,
    budget::{table_capacity, table_growth},
    elements::Elements,
    quantise::{from_int4, from_int8, groups, nibble_bytes, to_int4, to_int8},
};

/// How the numbers of a row are held.
///
/// ```
/// use deltallm_core::{ElementType, RowFormat};
///
/// assert_eq!(RowFormat::from(ElementType::F16).row_bytes(64), 128);
/// assert_eq!(RowFormat::Int8.row_bytes(64), 64 + 2 * 2); // two groups, each with its scale
/// assert_eq!(RowFormat::Int4.row_bytes(64), 32 + 2 * 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// One after the other in a float type.
    Float(ElementType),
    /// 8-bit codes with an f16 scale per [`GROUP`](crate::GROUP) channels.
    Int8,
    /// 4-bit codes with an f16 scale per [`GROUP`](crate::GROUP) channels.
    Int4,
}

impl From<ElementType> for RowFormat {
    fn from(element: ElementType) -> Self {
        Self::Float(element)
    }
}

impl RowFormat {
    /// Bytes of a row of `channels` numbers.
    pub fn row_bytes(self, channels: usize) -> usize {
        let scales = groups(channels) * size_of::<f16>();
        match self {
            Self::Float(element) => channels * element.bytes(),
            Self::Int8 => channels + scales,
            Self::Int4 => nibble_bytes(channels) + scales,
        }
    }

    /// The type whose numbers fit.
    fn takes(self) -> ElementType {
        match self {
            Self::Float(element) => element,
            Self::Int8 | Self::Int4 => ElementType::F16,
        }
    }
}

/// The numbers of a page, as they are held: row after row.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum RowsPage<'a> {
    /// `[tokens, channels]`.
    F32(&'a [f32]),
    /// `[tokens, channels]`.
    F16(&'a [f16]),
    /// `[tokens, channels]`.
    Bf16(&'a [bf16]),
    /// A number is `code * scale`, with the scale of its group of [`GROUP`](crate::GROUP) channels.
    Int8 {
        /// `[tokens, channels]`.
        codes: &'a [i8],
        /// `[tokens, groups]`.
        scales: &'a [f16],
    },
    /// A number is `(code - 8) * scale`, with the scale of its group of [`GROUP`](crate::GROUP) channels; scales may be
    /// negative. Byte `b` of a whole group holds channel `b` in its low half and channel `16 + b` in its high half; in a
    /// shorter last group of `g` channels it is channel `ceil(g / 2) + b` that stands in the high half.
    Int4 {
        /// `[tokens, bytes]`: half the channels, each group rounded up.
        codes: &'a [u8],
        /// `[tokens, groups]`.
        scales: &'a [f16],
    },
}

/// A page with room for its tokens.
#[derive(Debug)]
enum Page {
    Float(Elements),
    Int8 { codes: Vec<i8>, scales: Vec<f16> },
    Int4 { codes: Vec<u8>, scales: Vec<f16> },
}

impl Page {
    fn with_capacity(format: RowFormat, tokens: usize, channels: usize) -> Self {
        let scales = Vec::with_capacity(tokens * groups(channels));
        match format {
            RowFormat::Float(element) => Self::Float(Elements::with_capacity(element, tokens * channels)),
            RowFormat::Int8 => Self::Int8 { codes: Vec::with_capacity(tokens * channels), scales },
            RowFormat::Int4 => {
                Self::Int4 { codes: Vec::with_capacity(tokens * nibble_bytes(channels)), scales }
            }
        }
    }

    fn push(&mut self, row: &[f32], isa: Isa) {
        let groups = groups(row.len());
        match self {
            Self::Float(elements) => elements.extend(row),
            Self::Int8 { codes, scales } => {
                let (code, scale) = (codes.len(), scales.len());
                codes.resize(code + row.len(), 0);
                scales.resize(scale + groups, f16::ZERO);
                let (codes, scales) = (&mut codes[code..], &mut scales[scale..]);
                dispatch!(isa, _simd => to_int8(row, codes, scales));
            }
            Self::Int4 { codes, scales } => {
                let (code, scale) = (codes.len(), scales.len());
                codes.resize(code + nibble_bytes(row.len()), 0);
                scales.resize(scale + groups, f16::ZERO);
                let (codes, scales) = (&mut codes[code..], &mut scales[scale..]);
                dispatch!(isa, _simd => to_int4(row, codes, scales));
            }
        }
    }

    fn truncate(&mut self, tokens: usize, channels: usize) {
        match self {
            Self::Float(elements) => elements.truncate(tokens * channels),
            Self::Int8 { codes, scales } => {
                codes.truncate(tokens * channels);
                scales.truncate(tokens * groups(channels));
            }
            Self::Int4 { codes, scales } => {
                codes.truncate(tokens * nibble_bytes(channels));
                scales.truncate(tokens * groups(channels));
            }
        }
    }

    /// Appends rows to `rows`.
    fn gather(&self, tokens: Range<usize>, channels: usize, rows: &mut Vec<f32>) {
        let of = |width: usize| tokens.start * width..tokens.end * width;
        match self {
            Self::Float(elements) => {
                rows.extend_from_slice(elements.read(of(channels), &mut Vec::new()));
            }
            Self::Int8 { codes, scales } => {
                from_int8(&codes[of(channels)], &scales[of(groups(channels))], channels, rows);
            }
            Self::Int4 { codes, scales } => {
                from_int4(&codes[of(nibble_bytes(channels))], &scales[of(groups(channels))], channels, rows);
            }
        }
    }

    fn read<'a>(&'a self, tokens: Range<usize>, channels: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::Float(elements) => elements.read(tokens.start * channels..tokens.end * channels, scratch),
            _ => {
                scratch.clear();
                self.gather(tokens, channels, scratch);
                scratch
            }
        }
    }

    fn view(&self) -> RowsPage<'_> {
        match self {
            Self::Float(Elements::F32(rows)) => RowsPage::F32(rows),
            Self::Float(Elements::F16(rows)) => RowsPage::F16(rows),
            Self::Float(Elements::Bf16(rows)) => RowsPage::Bf16(rows),
            Self::Int8 { codes, scales } => RowsPage::Int8 { codes, scales },
            Self::Int4 { codes, scales } => RowsPage::Int4 { codes, scales },
        }
    }

    /// The elements, if they are of a type that is wider than `element`.
    fn wider_than(&self, element: ElementType) -> Option<&Elements> {
        match self {
            Self::Float(elements) if elements.narrows_to(element) => Some(elements),
            _ => None,
        }
    }
}

/// One row of `channels` numbers per token, stored in pages of a fixed number of tokens.
///
/// Rows are appended at the end, can be cut off at the end, and pages can be dropped from the front: the exact window
/// of a hybrid cache is such a tail. Pages never move, so the bytes held are exactly what is charged.
///
/// ```
/// use deltallm_core::{MemoryBudget, PagedRows, RowFormat};
///
/// let mut charge = MemoryBudget::unlimited().charge();
/// let mut rows = PagedRows::new(2, RowFormat::Int8, 64);
/// for t in 0..10 {
///     rows.push(&[t as f32, -1.0], &mut charge)?;
/// }
/// rows.truncate(5, &mut charge)?;
/// let mut scratch = Vec::new();
/// let last = rows.read(4..5, &mut scratch);
/// assert!((last[0] - 4.0).abs() < 0.02); // half a step of 4 / 127
/// assert_eq!(rows.len(), 5);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct PagedRows {
    channels: usize,
    format: RowFormat,
    page_tokens: usize,
    pages: VecDeque<Page>,
    /// Number of the first page in `pages`, counted from token 0.
    first_page: usize,
    /// First token whose row is held.
    first: usize,
    len: usize,
    /// The instruction set of the conversions.
    isa: Isa,
}

impl PagedRows {
    /// An empty store of rows of `channels` numbers, in pages of `page_tokens` (at least 1) tokens.
    pub fn new(channels: usize, format: impl Into<RowFormat>, page_tokens: usize) -> Self {
        Self {
            channels,
            format: format.into(),
            page_tokens: page_tokens.max(1),
            pages: VecDeque::new(),
            first_page: 0,
            first: 0,
            len: 0,
            isa: Isa::best(),
        }
    }

    /// An empty store whose first token is to be number `first`, as if those before it had been dropped.
    pub fn starting_at(
        first: usize,
        channels: usize,
        format: impl Into<RowFormat>,
        page_tokens: usize,
    ) -> Self {
        let rows = Self::new(channels, format, page_tokens);
        Self { first_page: first / rows.page_tokens, first, len: first, ..rows }
    }

    /// Tokens appended so far, those dropped from the front included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers in a row.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// How the numbers are held.
    pub fn format(&self) -> RowFormat {
        self.format
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Page `page` as it is held, counted from token 0: its first row is that of token `page * page_tokens`. `None` for a
    /// page that is not held. Rows before [`first`](Self::first) in it mean nothing.
    pub fn page(&self, page: usize) -> Option<RowsPage<'_>> {
        self.pages.get(page.checked_sub(self.first_page)?).map(Page::view)
    }

    /// The first token whose row is held (the length if none is).
    pub fn first(&self) -> usize {
        self.first
    }

    /// Appends a row (`[channels]`). A new page is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push(&mut self, row: &[f32], charge: &mut Charge) -> Result<(), CoreError> {
        if row.len() != self.channels {
            return Err(CoreError::Channels { expected: self.channels, got: row.len() });
        }
        let element = self.format.takes();
        if !dispatch!(self.isa, _simd => element.holds(row)) {
            element.check(row)?;
        }
        let page = self.len / self.page_tokens - self.first_page;
        if page == self.pages.len() {
            self.add_page(charge)?;
        }
        self.pages[page].push(row, self.isa);
        self.len += 1;
        Ok(())
    }

    fn add_page(&mut self, charge: &mut Charge) -> Result<(), CoreError> {
        let slots =
            if self.pages.len() < self.pages.capacity() { 0 } else { table_growth(self.pages.capacity()) };
        charge.grow(slots * Self::SLOT_BYTES + self.page_bytes())?;
        self.pages.reserve_exact(slots);
        let mut page = Page::with_capacity(self.format, self.page_tokens, self.channels);
        // After a cut within a page that had been dropped, the lost rows in front are filled up; nobody reads them.
        let lost = self.len % self.page_tokens;
        if lost > 0 {
            let zeros = vec![0.0; self.channels];
            (0..lost).for_each(|_| page.push(&zeros, self.isa));
        }
        self.pages.push_back(page);
        Ok(())
    }

    /// Forgets every token from `len` on. Rows dropped from the front do not come back.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize, charge: &mut Charge) -> Result<(), CoreError> {
        if len > self.len {
            return Err(CoreError::TruncateBeyondEnd { len: self.len, got: len });
        }
        self.len = len;
        self.first = self.first.min(len);
        // After an earlier cut into pages dropped from the front, the page that `len` stands in may not be held.
        let pages = len.div_ceil(self.page_tokens).saturating_sub(self.first_page).min(self.pages.len());
        charge.shrink((self.pages.len() - pages) * self.page_bytes());
        self.pages.truncate(pages);
        if pages == 0 {
            self.first_page = len / self.page_tokens;
        } else if let Some(page) = self.pages.back_mut() {
            page.truncate(len - (self.first_page + pages - 1) * self.page_tokens, self.channels);
        }
        Ok(())
    }

    /// Drops the pages that hold nothing but tokens before `first`, and a table that has become far too large.
    pub fn drop_before(&mut self, first: usize, charge: &mut Charge) {
        let end = first.min(self.len);
        while (self.first_page + 1) * self.page_tokens <= end && self.pages.pop_front().is_some() {
            self.first_page += 1;
            self.first = self.first.max(self.first_page * self.page_tokens);
            charge.shrink(self.page_bytes());
        }
        let slots = self.pages.capacity();
        if slots > table_capacity(0, 4 * self.pages.len().max(2)) {
            self.pages.shrink_to(table_capacity(0, 2 * self.pages.len()));
            charge.shrink((slots - self.pages.capacity()) * Self::SLOT_BYTES);
        }
    }

    /// Checks that every number held can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut scratch = Vec::new();
        for page in self.pages.iter().filter_map(|page| page.wider_than(element)) {
            let mut rows = page.read(0..page.len(), &mut scratch).chunks_exact(self.channels.max(1));
            rows.try_for_each(|row| element.check(row))?;
        }
        Ok(())
    }

    /// Converts page by page to a narrower float type and gives the freed bytes back; later rows are stored in it too. A
    /// store that is as narrow already stays as it is.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub fn narrow(&mut self, element: ElementType, charge: &mut Charge) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if matches!(self.format, RowFormat::Float(wide) if element.bytes() < wide.bytes()) {
            self.format = element.into();
            for page in &mut self.pages {
                if let Page::Float(elements) = page {
                    elements.convert(element, charge);
                }
            }
        }
        Ok(())
    }

    /// A copy in another format, with the same tokens.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`].
    pub fn converted(&self, format: impl Into<RowFormat>, charge: &mut Charge) -> Result<Self, CoreError> {
        let mut copy = Self::starting_at(self.first, self.channels, format, self.page_tokens);
        let mut scratch = Vec::new();
        for token in self.first..self.len {
            copy.push(self.read(token..token + 1, &mut scratch), charge)?;
        }
        Ok(copy)
    }

    /// Bytes that appending `tokens` rows would charge.
    pub fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        let end = self.len.saturating_add(tokens).div_ceil(self.page_tokens) - self.first_page;
        let (pages, slots) = (end.max(self.pages.len()), self.pages.capacity());
        let new_slots = table_capacity(slots, pages) - slots;
        (pages - self.pages.len())
            .saturating_mul(self.page_bytes())
            .saturating_add(new_slots.saturating_mul(Self::SLOT_BYTES))
    }

    /// The rows of `tokens` as f32, `[tokens, channels]`: borrowed where they already are, else gathered into
    /// `scratch`. All of them must be held.
    pub fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let at = |token: usize| (token / self.page_tokens - self.first_page, token % self.page_tokens);
        let (page, row) = at(tokens.start);
        if row + tokens.len() <= self.page_tokens {
            return self.pages[page].read(row..row + tokens.len(), self.channels, scratch);
        }
        scratch.clear();
        let mut token = tokens.start;
        while token < tokens.end {
            let (page, row) = at(token);
            let rows = (self.page_tokens - row).min(tokens.end - token);
            self.pages[page].gather(row..row + rows, self.channels, scratch);
            token += rows;
        }
        scratch
    }

    /// Bytes of all pages held.
    pub fn held_bytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Bytes of the table of pages.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.pages.capacity() * Self::SLOT_BYTES
    }

    /// Bytes of a slot in the table of pages.
    pub(crate) const SLOT_BYTES: usize = size_of::<Page>();

    fn page_bytes(&self) -> usize {
        self.page_tokens * self.format.row_bytes(self.channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBudget;

    #[test]
    fn quantised_rows_read_back_within_a_scale_wherever_they_are_cut() {
        let row = |t: usize| {
            (0..37).map(|j| (0.7 * (t * 37 + j) as f32).sin() * (1 + t % 5) as f32).collect::<Vec<_>>()
        };
        for (format, bound) in [(RowFormat::Int8, 5.0 / 254.0), (RowFormat::Int4, 5.0 / 8.0)] {
            let budget = MemoryBudget::unlimited();
            let (mut rows, mut charge) = (PagedRows::new(37, format, 4), budget.charge());
            (0..30).for_each(|t| rows.push(&row(t), &mut charge).unwrap());
            let all = rows.read(0..30, &mut Vec::new()).to_vec();
            for (x, y) in all.iter().zip((0..30).flat_map(row)) {
                assert!((x - y).abs() <= 1.01 * bound, "{format:?}: {x} {y}");
            }
            assert_eq!(rows.read(6..8, &mut Vec::new()), &all[6 * 37..8 * 37]);
            let copy = rows.converted(ElementType::F32, &mut charge).unwrap();
            assert_eq!(copy.read(0..30, &mut Vec::new()), all);
            drop(copy);
            rows.drop_before(9, &mut charge);
            rows.truncate(14, &mut charge).unwrap();
            (14..20).for_each(|t| rows.push(&row(t), &mut charge).unwrap());
            assert_eq!(rows.read(8..20, &mut Vec::new()), &all[8 * 37..20 * 37]);
            let copy = rows.converted(ElementType::F16, &mut charge).unwrap();
            assert_eq!((copy.first(), copy.len()), (8, 20));
        }
    }

    #[test]
    fn pages_show_their_codes() {
        let (mut rows, mut charge) =
            (PagedRows::new(64, RowFormat::Int4, 4), MemoryBudget::unlimited().charge());
        (0..6).for_each(|t| rows.push(&[t as f32; 64], &mut charge).unwrap());
        let Some(RowsPage::Int4 { codes, scales }) = rows.page(1) else { panic!("the second page") };
        assert_eq!((codes.len(), scales.len()), (2 * 32, 2 * 2));
        // The largest magnitude has the code 0: -8 times a negative scale.
        assert!(codes.iter().all(|byte| *byte == 0));
        assert_eq!(scales[2].to_f32(), -5.0 / 8.0);
        assert!(rows.page(2).is_none());
    }

    fn filled(tokens: usize, budget: &MemoryBudget) -> (PagedRows, Charge) {
        let (mut rows, mut charge) = (PagedRows::new(2, ElementType::F32, 4), budget.charge());
        for t in 0..tokens {
            rows.push(&[t as f32, -(t as f32)], &mut charge).unwrap();
        }
        (rows, charge)
    }

    fn first_column(rows: &PagedRows, tokens: Range<usize>) -> Vec<f32> {
        rows.read(tokens, &mut Vec::new()).iter().step_by(2).copied().collect()
    }

    #[test]
    fn reads_across_pages() {
        let (rows, _charge) = filled(11, &MemoryBudget::unlimited());
        assert_eq!(first_column(&rows, 2..10), [2., 3., 4., 5., 6., 7., 8., 9.]);
        assert_eq!(first_column(&rows, 4..8), [4., 5., 6., 7.]);
    }

    #[test]
    fn every_cut_and_refill_reads_back() {
        let budget = MemoryBudget::unlimited();
        for dropped in 0..12 {
            for len in 0..=11 {
                let (mut rows, mut charge) = filled(11, &budget);
                rows.drop_before(dropped, &mut charge);
                rows.truncate(len, &mut charge).unwrap();
                let held = rows.first();
                assert!(held <= len && held >= (dropped / 4 * 4).min(len), "{dropped} {len} {held}");
                for t in len..20 {
                    rows.push(&[t as f32, 0.0], &mut charge).unwrap();
                }
                let expected: Vec<f32> = (held..20).map(|t| t as f32).collect();
                assert_eq!(first_column(&rows, held..20), expected);
                assert_eq!(charge.bytes(), rows.held_bytes() + rows.bookkeeping_bytes());
                drop(charge);
                assert_eq!(budget.used(), 0);
            }
        }
    }

    #[test]
    fn cuts_into_dropped_pages_can_follow_each_other() {
        for cuts in [[10, 6, 6], [6, 6, 5], [5, 4, 0], [3, 3, 3]] {
            let budget = MemoryBudget::unlimited();
            let (mut rows, mut charge) = filled(11, &budget);
            rows.drop_before(11, &mut charge);
            for cut in cuts {
                rows.truncate(cut, &mut charge).unwrap();
                assert_eq!(charge.bytes(), rows.held_bytes() + rows.bookkeeping_bytes(), "{cuts:?}");
            }
            let [.., len] = cuts;
            for t in len..20 {
                rows.push(&[t as f32, 0.0], &mut charge).unwrap();
            }
            let expected: Vec<f32> = (len..20).map(|t| t as f32).collect();
            assert_eq!(first_column(&rows, len..20), expected, "{cuts:?}");
        }
    }

    #[test]
    fn a_page_beyond_the_budget_is_refused_and_nothing_is_lost() {
        let (rows, charge) = filled(4, &MemoryBudget::unlimited());
        let budget = MemoryBudget::new(charge.bytes());
        let (mut rows2, mut charge2) = filled(4, &budget);
        assert!(matches!(rows2.push(&[0.0; 2], &mut charge2), Err(CoreError::BudgetExhausted { .. })));
        assert_eq!(first_column(&rows2, 0..4), first_column(&rows, 0..4));
        assert_eq!(rows2.len(), 4);
    }
}
