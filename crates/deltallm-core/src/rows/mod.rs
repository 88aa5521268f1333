//! Rows of keys or values, in pages.

mod float;
mod forms;
mod int4;
mod int8;

use std::{collections::VecDeque, ops::Range};

use deltallm_simd::Isa;

use crate::{
    budget::{MemoryBudget, Reservation, StoreBytes, table_capacity},
    check::check_row,
    element::ElementType,
    error::CoreError,
    piece::Piece,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
    token_store::Store,
};

pub use crate::quantise::GROUP;
pub use {
    float::FloatRows,
    forms::{RowFormat, StoredRows},
    int4::Int4Rows,
    int8::Int8Rows,
};

/// How the first page of a centered store is held. A cut within it then leaves no trace, and the first keys, which are often the most
/// important, are off by less.
const FIRST_FORMAT: RowFormat = RowFormat::Float(ElementType::F16);

/// More tokens than any cache on earth has.
pub(crate) const MOST_TOKENS: usize = 1 << 40;

/// One row of `channels` numbers per token, stored in pages of a fixed number of tokens.
///
/// Rows are appended at the end, can be cut off at the end, and pages can be dropped from the front: the exact window
/// of a hybrid cache is such a tail. Pages never move, so the bytes held are exactly what is charged. Forks share pages; whoever
/// writes into one that others have too copies it first.
///
/// ```
/// use deltallm_core::MemoryBudget;
/// use deltallm_core::internal::{PagedRows, RowFormat};
///
/// let budget = MemoryBudget::unlimited();
/// let mut rows = PagedRows::new(2, RowFormat::Int8, 64, &budget);
/// for t in 0..10 {
///     rows.push(&[t as f32, -1.0])?;
/// }
/// rows.truncate(5)?;
/// let mut scratch = Vec::new();
/// let last = rows.read(4..5, &mut scratch);
/// assert!((last[0] - 4.0).abs() < 0.02); // half a step of 4 / 127
/// assert_eq!(rows.len(), 5);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct PagedRows {
    layout: Layout,
    pages: VecDeque<Piece>,
    /// Number of the first page in `pages`, counted from token 0.
    first_page: usize,
    /// First token whose row is held.
    first: usize,
    /// Tokens appended. Rows after them, left in their page by a truncation, are overwritten.
    len: usize,
    /// What rows behind the first page are held relative to, `[channels]`; empty for nothing.
    center: Vec<f32>,
    /// A row less the center, on its way to a page.
    shifted: Vec<f32>,
    /// Of the table and the center: pages pay for themselves.
    charge: Reservation,
    /// The instruction set of the conversions.
    isa: Isa,
}

/// What the pages of a store have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) channels: usize,
    pub(crate) format: RowFormat,
    pub(crate) page_tokens: usize,
    /// Whether rows of 8 bits are [centered](PagedRows::centered).
    pub(crate) centered: bool,
}

impl Layout {
    /// Bytes of so many pages, in a table with so many slots.
    pub(crate) fn bytes(&self, pages: usize, slots: usize) -> StoreBytes {
        let page = Piece::data_bytes(self.page_bytes(self.format));
        let table = slots.saturating_mul(size_of::<Piece>());
        StoreBytes {
            data: pages.saturating_mul(page),
            table: table.saturating_add(pages.saturating_mul(Piece::OVERHEAD)),
        }
    }

    /// The same of a store that may be centered: with its first page, should it be among them, and with a center.
    pub(crate) fn bytes_from(&self, pages: usize, slots: usize, [first, center]: [bool; 2]) -> StoreBytes {
        let bytes = self.bytes(pages, slots);
        if !self.has_center() {
            return bytes;
        }
        let rows = if center { self.channels.saturating_mul(2 * size_of::<f32>()) } else { 0 };
        let [first_page, others] =
            [FIRST_FORMAT, self.format].map(|format| Piece::data_bytes(self.page_bytes(format)));
        let data = if first { bytes.data.saturating_add(first_page) - others } else { bytes.data };
        StoreBytes { data, table: bytes.table.saturating_add(rows) }
    }

    fn page_bytes(&self, format: RowFormat) -> usize {
        format.page_bytes(self.page_tokens, self.channels)
    }

    fn has_center(&self) -> bool {
        self.centered && self.format == RowFormat::Int8
    }

    /// How the rows of page `number` are held.
    fn format_of(&self, number: usize) -> RowFormat {
        if number == 0 && self.has_center() { FIRST_FORMAT } else { self.format }
    }
}

impl PagedRows {
    /// An empty store of rows of `channels` numbers, in pages of `page_tokens` (at least 1) tokens, that charges `budget`.
    pub fn new(
        channels: usize,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Self {
        Self {
            layout: Layout {
                channels,
                format: format.into(),
                page_tokens: page_tokens.max(1),
                centered: false,
            },
            pages: VecDeque::new(),
            first_page: 0,
            first: 0,
            len: 0,
            center: Vec::new(),
            shifted: Vec::new(),
            charge: budget.reservation(),
            isa: Isa::best(),
        }
    }

    /// An empty store whose first token is to be number `first`, as if those before it had been dropped.
    pub fn starting_at(
        first: usize,
        channels: usize,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Self {
        let rows = Self::new(channels, format, page_tokens, budget);
        Self { first_page: first / rows.layout.page_tokens, first, len: first, ..rows }
    }

    /// Holds rows of 8 bits relative to the mean of the first page, and that page in f16. What all rows have in common, as biases of keys
    /// are, then takes nothing of a scale. (Rows of floats are held as they are.)
    #[must_use]
    pub fn centered(self) -> Self {
        Self { layout: Layout { centered: true, ..self.layout }, ..self }
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
        self.layout.channels
    }

    /// How the numbers are held.
    pub fn format(&self) -> RowFormat {
        self.layout.format
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.layout.page_tokens
    }

    /// The account that is charged.
    pub fn budget(&self) -> &MemoryBudget {
        self.charge.budget()
    }

    /// The first of `tokens` in their stored form, as many as are in one page, and their number. `None` if their page is not
    /// held. Rows of the page before [`first`](Self::first) have been dropped and must not be read.
    pub fn stored(&self, tokens: Range<usize>) -> Option<(StoredRows<'_>, usize)> {
        let Layout { channels, page_tokens, .. } = self.layout;
        let number = tokens.start / page_tokens;
        let page = self.pages.get(number.checked_sub(self.first_page)?)?;
        let first = tokens.start % page_tokens;
        let count = tokens.len().min(page_tokens - first);
        let format = self.layout.format_of(number);
        let rows = match format.view(page.data(), page_tokens, channels, first..first + count) {
            StoredRows::Int8(rows) => StoredRows::Int8(Int8Rows { center: &self.center, ..rows }),
            rows => rows,
        };
        Some((rows, count))
    }

    /// The first token whose row is held (the length if none is).
    pub fn first(&self) -> usize {
        self.first
    }

    /// Appends a row (`[channels]`). A new page is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push(&mut self, row: &[f32]) -> Result<(), CoreError> {
        check_row(row, self.layout.channels, self.layout.format.takes(), self.isa)?;
        self.push_checked(row)
    }

    /// The same with a row that is known to have the right length and to fit the format ([`RowFormat::takes`]).
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push_checked(&mut self, row: &[f32]) -> Result<(), CoreError> {
        debug_assert!(row.len() == self.layout.channels && self.layout.format.takes().holds(row));
        let Layout { page_tokens, .. } = self.layout;
        let number = self.len / page_tokens;
        if number - self.first_page == self.pages.len() {
            self.add_page()?;
        }
        let format = self.layout.format_of(number);
        let page = self.pages[number - self.first_page].data_mut(self.charge.budget())?;
        let row = if format == RowFormat::Int8 && !self.center.is_empty() {
            self.shifted.clear();
            self.shifted.extend(row.iter().zip(&self.center).map(|(x, center)| x - center));
            &self.shifted
        } else {
            row
        };
        format.write(page, page_tokens, self.len % page_tokens, row, self.isa);
        self.len += 1;
        Ok(())
    }

    fn add_page(&mut self) -> Result<(), CoreError> {
        let slots = table_capacity(self.pages.capacity(), self.pages.len() + 1);
        let number = self.first_page + self.pages.len();
        let center = number == 1 && self.layout.has_center() && self.first_page == 0;
        let rows = if center { 2 * self.layout.channels * size_of::<f32>() } else { 0 };
        let more = (slots - self.pages.capacity()) * size_of::<Piece>() + rows;
        self.charge.grow(more)?;
        let page = Piece::new(self.layout.page_bytes(self.layout.format_of(number)), self.charge.budget());
        let page = page.inspect_err(|_| self.charge.shrink(more))?;
        self.pages.reserve_exact(slots - self.pages.len());
        if center {
            self.take_center();
        }
        self.pages.push_back(page);
        Ok(())
    }

    /// Sets the center to the mean of the first page.
    fn take_center(&mut self) {
        let (channels, rows) = (self.layout.channels, self.layout.page_tokens);
        self.shifted.reserve_exact(channels);
        let mut center = Vec::with_capacity(channels);
        center.resize(channels, 0.0);
        for row in self.read(0..rows, &mut Vec::new()).chunks_exact(channels.max(1)) {
            center.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / rows as f32);
        }
        self.center = center;
    }

    /// Forgets every token from `len` on. Rows dropped from the front do not come back.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize) -> Result<(), CoreError> {
        if len > self.len {
            return Err(CoreError::TruncateBeyondEnd { len: self.len, got: len });
        }
        self.len = len;
        self.first = self.first.min(len);
        // After an earlier cut into pages dropped from the front, the page that `len` stands in may not be held.
        let pages =
            len.div_ceil(self.layout.page_tokens).saturating_sub(self.first_page).min(self.pages.len());
        self.pages.truncate(pages);
        if pages == 0 {
            self.first_page = len / self.layout.page_tokens;
        }
        if self.first_page == 0 && pages <= 1 {
            // It comes again, of the rows that are there then.
            self.charge.shrink(self.center_bytes());
            (self.center, self.shifted) = (Vec::new(), Vec::new());
        }
        Ok(())
    }

    /// Drops the pages that hold nothing but tokens before `first`, and a table that has become far too large.
    pub fn drop_before(&mut self, first: usize) {
        let end = first.min(self.len);
        while (self.first_page + 1) * self.layout.page_tokens <= end && self.pages.pop_front().is_some() {
            self.first_page += 1;
            self.first = self.first.max(self.first_page * self.layout.page_tokens);
        }
        if self.pages.capacity() > table_capacity(0, 4 * self.pages.len().max(2)) {
            let slots = self.pages.capacity();
            self.pages.shrink_to(table_capacity(0, 2 * self.pages.len()));
            self.charge.shrink((slots - self.pages.capacity()) * size_of::<Piece>());
        }
    }

    /// Whether the rows are of a wider float type than `element`.
    fn narrows_to(&self, element: ElementType) -> bool {
        matches!(self.layout.format, RowFormat::Float(wide) if element.bytes() < wide.bytes())
    }

    /// Checks that every number held can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        if self.narrows_to(element) { self.check_all(element) } else { Ok(()) }
    }

    /// Checks that every number held is one that `element` can hold: of rows that have been loaded, and will be stored again.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is not.
    pub fn check_all(&self, element: ElementType) -> Result<(), CoreError> {
        let mut scratch = Vec::new();
        for number in self.first_page..self.first_page + self.pages.len() {
            let start = number * self.layout.page_tokens;
            let rows = self.read(start..self.len.min(start + self.layout.page_tokens), &mut scratch);
            rows.chunks_exact(self.layout.channels.max(1)).try_for_each(|row| element.check(row))?;
        }
        Ok(())
    }

    /// Whether others hold some of the pages too.
    pub fn is_shared(&self) -> bool {
        self.pages.iter().any(Piece::is_shared)
    }

    /// Bytes that narrowing charges before it gives any back: for pages that others share.
    pub fn narrow_growth(&self, element: ElementType) -> usize {
        if !self.narrows_to(element) {
            return 0;
        }
        let shared = self.pages.iter().filter(|page| page.is_shared()).count();
        Layout { format: element.into(), ..self.layout }.bytes(shared, 0).total()
    }

    /// Converts page by page to a narrower float type and gives the freed bytes back; later rows are stored in it too. A
    /// store that is as narrow already stays as it is. `charge` pays for as much as [`narrow_growth`](Self::narrow_growth) says: pages that are
    /// shared stay as they are for the others. While this runs one page exists twice, which is not charged.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if !self.narrows_to(element) {
            return Ok(());
        }
        let layout = Layout { format: element.into(), ..self.layout };
        for number in self.first_page..self.first_page + self.pages.len() {
            let mut narrow = self.narrowed(number, layout)?;
            let page = &mut self.pages[number - self.first_page];
            page.uncharge().into_iter().for_each(|paid| charge.merge(paid));
            narrow.charge_with(charge);
            *page = narrow;
        }
        self.layout.format = element.into();
        Ok(())
    }

    /// The page itself; or, if it still holds rows of truncated tokens, a copy without them, so that a snapshot does not reveal them. The
    /// copy is not charged.
    fn without_stale_rows(&self, number: usize, page: &Piece) -> Piece {
        let Layout { channels, page_tokens, .. } = self.layout;
        let (start, format) = (number * page_tokens, self.layout.format_of(number));
        if start + page_tokens <= self.len {
            return page.clone();
        }
        let unlimited = MemoryBudget::unlimited();
        let copy = Piece::new(page.data().len(), &unlimited).and_then(|mut copy| {
            let rows = self.len.saturating_sub(start);
            format.copy_rows(page.data(), copy.data_mut(&unlimited)?, page_tokens, channels, rows);
            Ok(copy)
        });
        copy.unwrap_or_else(|_| page.clone())
    }

    /// A copy of a page that is held in the float type of another layout. Nobody has been charged it.
    fn narrowed(&self, number: usize, layout: Layout) -> Result<Piece, CoreError> {
        let Layout { channels, page_tokens, .. } = layout;
        let unlimited = MemoryBudget::unlimited();
        let mut narrow = Piece::new(layout.page_bytes(layout.format), &unlimited)?;
        let (start, data) = (number * page_tokens, narrow.data_mut(&unlimited)?);
        let mut scratch = Vec::new();
        let rows = self.read(start..self.len.min(start + page_tokens), &mut scratch);
        for (at, row) in rows.chunks_exact(channels.max(1)).enumerate() {
            layout.format.write(data, page_tokens, at, row, self.isa);
        }
        drop(narrow.uncharge());
        Ok(narrow)
    }

    /// A copy in another format, with the same tokens, that charges `budget`.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`].
    pub fn converted(&self, format: impl Into<RowFormat>, budget: &MemoryBudget) -> Result<Self, CoreError> {
        self.copied(self.first..self.len, format, self.layout.page_tokens, budget)
    }

    /// A copy of some tokens, all of which must be held, in another format and in pages of another size.
    ///
    /// # Errors
    /// As [`converted`](Self::converted).
    pub fn copied(
        &self,
        tokens: Range<usize>,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let mut copy = Self::starting_at(tokens.start, self.layout.channels, format, page_tokens, budget);
        copy.layout.centered = self.layout.centered;
        let mut scratch = Vec::new();
        for token in tokens {
            copy.push(self.read(token..token + 1, &mut scratch))?;
        }
        Ok(copy)
    }

    /// Bytes that appending `tokens` rows would charge.
    pub fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        let end = self.len.saturating_add(tokens).div_ceil(self.layout.page_tokens) - self.first_page;
        let pages = end.max(self.pages.len());
        let grown = self.bytes_with(pages, table_capacity(self.pages.capacity(), pages)).beyond(self.bytes());
        // The page that the next row goes to.
        let next = self.pages.get(self.len / self.layout.page_tokens - self.first_page);
        grown.saturating_add(next.filter(|page| page.is_shared()).map_or(0, Piece::bytes))
    }

    /// The rows of `tokens` as f32, `[tokens, channels]`: borrowed where they already are, else gathered into
    /// `scratch`. All of them must be held.
    pub fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if let Some((StoredRows::F32(rows), count)) = self.stored(tokens.clone())
            && count == tokens.len()
        {
            return rows.data;
        }
        scratch.clear();
        let mut token = tokens.start;
        while token < tokens.end {
            let Some((rows, count)) = self.stored(token..tokens.end) else { break };
            let start = scratch.len();
            rows.gather(self.layout.channels, scratch);
            if let StoredRows::Int8(Int8Rows { center: center @ [_, ..], .. }) = rows {
                let rows = scratch[start..].chunks_exact_mut(self.layout.channels);
                rows.for_each(|row| row.iter_mut().zip(center).for_each(|(x, center)| *x += center));
            }
            token += count;
        }
        scratch
    }

    /// Bytes of all pages held.
    pub fn held_bytes(&self) -> usize {
        self.bytes().data
    }

    /// Bytes of the table of pages.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.bytes().table
    }

    fn bytes(&self) -> StoreBytes {
        self.bytes_with(self.pages.len(), self.pages.capacity())
    }

    /// Bytes with so many pages in a table of so many slots.
    fn bytes_with(&self, pages: usize, slots: usize) -> StoreBytes {
        let from_start = self.first_page == 0;
        let center = !self.center.is_empty() || from_start && pages > 1;
        self.layout.bytes_from(pages, slots, [from_start && pages > 0, center])
    }

    /// Bytes of the center, and of a row less it.
    fn center_bytes(&self) -> usize {
        2 * self.center.len() * size_of::<f32>()
    }
}

impl Store for PagedRows {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let slots = table_capacity(0, self.pages.len());
        let mut charge = budget.reservation();
        charge.grow(slots * size_of::<Piece>() + self.center_bytes())?;
        let mut pages = VecDeque::with_capacity(slots);
        pages.extend(self.pages.iter().cloned());
        let (center, shifted) = (self.center.clone(), Vec::with_capacity(self.center.len()));
        Ok(Self { layout: self.layout, pages, center, shifted, charge, ..*self })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.charge.take();
        self.pages.iter_mut().filter_map(Piece::uncharge).for_each(|charge| all.merge(charge));
        all
    }

    fn unpaid(&self) -> usize {
        let own = self.pages.capacity() * size_of::<Piece>() + self.center_bytes();
        let own = if self.charge.bytes() == 0 { own } else { 0 };
        self.pages.iter().map(Piece::unpaid).sum::<usize>() + own
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        let own = self.pages.capacity() * size_of::<Piece>() + self.center_bytes();
        if self.charge.bytes() == 0 {
            self.charge = charge.split(own);
        }
        self.pages.iter_mut().for_each(|page| page.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        let Layout { channels, format, page_tokens, centered } = self.layout;
        writer.text(format.name());
        [channels, page_tokens, usize::from(centered)].into_iter().for_each(|count| writer.count(count));
        [self.len, self.first, self.first_page, self.pages.len()]
            .into_iter()
            .for_each(|count| writer.count(count));
        writer.floats(&self.center);
        for (number, page) in (self.first_page..).zip(&self.pages) {
            writer.piece(self.without_stale_rows(number, page));
        }
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let layout @ Layout { channels, format, page_tokens, centered } = self.layout;
        let name = reader.text()?;
        reader.expect("rows in", format.name(), &name)?;
        let got = reader.count("channels", usize::MAX)?;
        reader.expect("channels", channels, got)?;
        let got = reader.count("tokens in a page", usize::MAX)?;
        reader.expect("tokens in a page", page_tokens, got)?;
        let got = reader.count("centered rows", 1)?;
        reader.expect("centered rows", usize::from(centered), got)?;
        let len = reader.count("tokens", MOST_TOKENS)?;
        let first = reader.count("first token", len)?;
        let first_page = reader.count("first page", len / page_tokens)?;
        // After a cut into what had been dropped, the page that the next row goes to is not there.
        let held = len.div_ceil(page_tokens) - first_page;
        let pages = reader.count("pages", held)?;
        let complete = pages == held || pages == 0 && first_page == len / page_tokens && first == len;
        if !complete || first < len.min(first_page * page_tokens) {
            let (expected, got) = ("the pages of all tokens from the first one on", pages as u64);
            return Err(SnapshotError::Invalid { what: "pages", expected, got });
        }
        let center = reader.floats()?;
        // Of the first page there is one as soon as there is a second; once that is gone it may be there or not.
        let [least, most] = match (layout.has_center(), first_page, pages) {
            (true, 0, 2..) => [channels, channels],
            (true, 1.., _) => [0, channels],
            _ => [0, 0],
        };
        let fits = center.len() == least || center.len() == most;
        if !fits {
            let (expected, got) = ("a center of one number per channel, or none", center.len() as u64);
            return Err(SnapshotError::Invalid { what: "numbers", expected, got });
        }
        let mut loaded = Self::starting_at(first, channels, format, page_tokens, self.charge.budget());
        loaded.layout = layout;
        let slots = table_capacity(0, pages);
        loaded.charge.grow(slots * size_of::<Piece>() + 2 * center.len() * size_of::<f32>())?;
        loaded.pages = VecDeque::with_capacity(slots);
        for number in first_page..first_page + pages {
            let bytes = layout.page_bytes(layout.format_of(number));
            loaded.pages.push_back(reader.piece(bytes, self.charge.budget())?);
        }
        loaded.shifted.reserve_exact(center.len());
        Ok(Self { len, first_page, center, ..loaded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::MemoryBudget;

    #[test]
    fn quantised_rows_read_back_within_a_scale_wherever_they_are_cut() {
        let row = |t: usize| {
            (0..37).map(|j| (0.7 * (t * 37 + j) as f32).sin() * (1 + t % 5) as f32).collect::<Vec<_>>()
        };
        for (format, bound) in [(RowFormat::Int8, 5.0 / 254.0), (RowFormat::Int4, 5.0 / 8.0)] {
            let budget = MemoryBudget::unlimited();
            let mut rows = PagedRows::new(37, format, 4, &budget);
            (0..30).for_each(|t| rows.push(&row(t)).unwrap());
            let all = rows.read(0..30, &mut Vec::new()).to_vec();
            for (x, y) in all.iter().zip((0..30).flat_map(row)) {
                assert!((x - y).abs() <= 1.01 * bound, "{format:?}: {x} {y}");
            }
            assert_eq!(rows.read(6..8, &mut Vec::new()), &all[6 * 37..8 * 37]);
            let copy = rows.converted(ElementType::F32, &budget).unwrap();
            assert_eq!(copy.read(0..30, &mut Vec::new()), all);
            drop(copy);
            rows.drop_before(9);
            rows.truncate(14).unwrap();
            (14..20).for_each(|t| rows.push(&row(t)).unwrap());
            assert_eq!(rows.read(8..20, &mut Vec::new()), &all[8 * 37..20 * 37]);
            let copy = rows.converted(ElementType::F16, &budget).unwrap();
            assert_eq!((copy.first(), copy.len()), (8, 20));
        }
    }

    #[test]
    fn pages_show_their_codes() {
        let mut rows = PagedRows::new(64, RowFormat::Int4, 4, &MemoryBudget::unlimited());
        (0..6).for_each(|t| rows.push(&[t as f32; 64]).unwrap());
        let Some((StoredRows::Int4(Int4Rows { codes, scales }), 2)) = rows.stored(4..6) else {
            panic!("the second page")
        };
        assert_eq!((codes.len(), scales.len()), (2 * 32, 2 * 2));
        // The largest magnitude has the code 0: -8 times a negative scale.
        assert!(codes.iter().all(|byte| *byte == 0));
        assert_eq!(scales[2].to_f32(), -5.0 / 8.0);
        assert!(rows.stored(8..9).is_none());
    }

    #[test]
    fn what_all_rows_have_in_common_takes_nothing_of_a_scale() {
        // A bias of 300 in one channel, as Qwen's keys have; the others are within 1.
        let row = |t: usize| {
            let bias = |j: usize| if j == 5 { 300.0 } else { 0.0 };
            (0..32).map(|j| (0.7 * (t * 32 + j) as f32).sin() + bias(j)).collect::<Vec<_>>()
        };
        let error = |rows: PagedRows| {
            let mut rows = rows;
            (0..100).for_each(|t| rows.push(&row(t)).unwrap());
            let held = rows.read(64..100, &mut Vec::new()).to_vec();
            let differences = held.iter().zip((64..100).flat_map(row)).map(|(x, y)| (x - y).abs());
            differences.fold(0.0, f32::max)
        };
        let rows = || PagedRows::new(32, RowFormat::Int8, 64, &MemoryBudget::unlimited());
        assert!(error(rows()) > 0.5, "half a step of 300 / 127");
        assert!(error(rows().centered()) < 0.01, "half a step of 2 / 127");
    }

    #[test]
    fn a_cut_of_centered_rows_leaves_no_trace() {
        let row =
            |t: usize| (0..37).map(|j| (0.3 * (t * 37 + j) as f32).sin() + j as f32).collect::<Vec<_>>();
        let budget = MemoryBudget::unlimited();
        let rows = |ends: &[(usize, usize)]| {
            let mut rows = PagedRows::new(37, RowFormat::Int8, 64, &budget).centered();
            for &(end, cut) in ends {
                (rows.len()..end).for_each(|t| rows.push(&row(t)).unwrap());
                rows.truncate(cut).unwrap();
            }
            assert_eq!(budget.used(), rows.held_bytes() + rows.bookkeeping_bytes());
            (rows.read(0..rows.len(), &mut Vec::new()).to_vec(), budget.used())
        };
        for cut in [0, 1, 63, 64, 65, 128, 150] {
            assert_eq!(rows(&[(200, cut), (200, 200)]), rows(&[(200, 200)]), "{cut}");
        }
    }

    fn filled(tokens: usize, budget: &MemoryBudget) -> PagedRows {
        let mut rows = PagedRows::new(2, ElementType::F32, 4, budget);
        for t in 0..tokens {
            rows.push(&[t as f32, -(t as f32)]).unwrap();
        }
        rows
    }

    fn first_column(rows: &PagedRows, tokens: Range<usize>) -> Vec<f32> {
        rows.read(tokens, &mut Vec::new()).iter().step_by(2).copied().collect()
    }

    #[test]
    fn reads_across_pages() {
        let rows = filled(11, &MemoryBudget::unlimited());
        assert_eq!(first_column(&rows, 2..10), [2., 3., 4., 5., 6., 7., 8., 9.]);
        assert_eq!(first_column(&rows, 4..8), [4., 5., 6., 7.]);
    }

    #[test]
    fn every_cut_and_refill_reads_back() {
        let budget = MemoryBudget::unlimited();
        for dropped in 0..12 {
            for len in 0..=11 {
                let mut rows = filled(11, &budget);
                rows.drop_before(dropped);
                rows.truncate(len).unwrap();
                let held = rows.first();
                assert!(held <= len && held >= (dropped / 4 * 4).min(len), "{dropped} {len} {held}");
                for t in len..20 {
                    rows.push(&[t as f32, 0.0]).unwrap();
                }
                let expected: Vec<f32> = (held..20).map(|t| t as f32).collect();
                assert_eq!(first_column(&rows, held..20), expected);
                assert_eq!(budget.used(), rows.held_bytes() + rows.bookkeeping_bytes());
                drop(rows);
                assert_eq!(budget.used(), 0);
            }
        }
    }

    #[test]
    fn cuts_into_dropped_pages_can_follow_each_other() {
        for cuts in [[10, 6, 6], [6, 6, 5], [5, 4, 0], [3, 3, 3]] {
            let budget = MemoryBudget::unlimited();
            let mut rows = filled(11, &budget);
            rows.drop_before(11);
            for cut in cuts {
                rows.truncate(cut).unwrap();
                assert_eq!(budget.used(), rows.held_bytes() + rows.bookkeeping_bytes(), "{cuts:?}");
            }
            let [.., len] = cuts;
            for t in len..20 {
                rows.push(&[t as f32, 0.0]).unwrap();
            }
            let expected: Vec<f32> = (len..20).map(|t| t as f32).collect();
            assert_eq!(first_column(&rows, len..20), expected, "{cuts:?}");
        }
    }

    #[test]
    fn a_page_beyond_the_budget_is_refused_and_nothing_is_lost() {
        let unlimited = MemoryBudget::unlimited();
        let rows = filled(4, &unlimited);
        let budget = MemoryBudget::new(unlimited.used());
        let mut rows2 = filled(4, &budget);
        assert!(matches!(rows2.push(&[0.0; 2]), Err(CoreError::BudgetExhausted { .. })));
        assert_eq!(first_column(&rows2, 0..4), first_column(&rows, 0..4));
        assert_eq!(rows2.len(), 4);
    }

    #[test]
    fn forks_share_pages_until_one_writes() {
        let budget = MemoryBudget::unlimited();
        let mut rows = filled(10, &budget);
        let alone = budget.used();
        let mut fork = rows.fork(&budget).unwrap();
        let table = budget.used() - alone;
        assert_eq!(table, fork.pages.capacity() * size_of::<Piece>());
        assert_eq!(fork.held_bytes(), rows.held_bytes());
        // Within the last page, which then is each one's own; and behind it.
        for (store, x) in [(&mut rows, 1.0), (&mut fork, 2.0)] {
            let (growth, before) = (store.growth(1), budget.used());
            store.push(&[x, x]).unwrap();
            assert_eq!(budget.used() - before, growth);
        }
        fork.truncate(9).unwrap();
        (0..4).for_each(|_| fork.push(&[7.0, 0.0]).unwrap());
        assert_eq!(first_column(&rows, 7..11), [7., 8., 9., 1.]);
        assert_eq!(first_column(&fork, 7..13), [7., 8., 7., 7., 7., 7.]);
        narrow(&mut rows).unwrap();
        assert_eq!(first_column(&rows, 0..11), [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 1.]);
        assert_eq!(first_column(&fork, 0..4), [0., 1., 2., 3.]);
        drop(rows);
        assert_eq!(budget.used(), fork.held_bytes() + fork.bookkeeping_bytes());
        drop(fork);
        assert_eq!(budget.used(), 0);
    }

    fn narrow(rows: &mut PagedRows) -> Result<(), CoreError> {
        let mut charge = rows.budget().reservation();
        charge.grow(rows.narrow_growth(ElementType::F16))?;
        rows.narrow(ElementType::F16, &mut charge)
    }

    #[test]
    fn a_fork_that_the_budget_does_not_cover_leaves_no_trace() {
        let unlimited = MemoryBudget::unlimited();
        let bytes = |rows: &PagedRows| rows.held_bytes() + rows.bookkeeping_bytes();
        let budget = MemoryBudget::new(bytes(&filled(10, &unlimited)) + 130);
        let mut rows = filled(10, &budget);
        let fork = rows.fork(&budget).unwrap();
        assert!(matches!(rows.push(&[0.0; 2]), Err(CoreError::BudgetExhausted { .. })));
        assert!(matches!(narrow(&mut rows), Err(CoreError::BudgetExhausted { .. })));
        drop(fork);
        rows.push(&[0.0; 2]).unwrap();
        narrow(&mut rows).unwrap();
        assert_eq!(budget.used(), bytes(&rows));
    }
}
