//! Rows as forks and snapshots have them, and what they are charged.

use std::collections::VecDeque;

use super::{Layout, MOST_TOKENS, PagedRows};
use crate::{
    budget::{MemoryBudget, Reservation, table_capacity},
    error::CoreError,
    piece::Piece,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
    token_store::TokenStore,
};

impl TokenStore for PagedRows {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let slots = table_capacity(0, self.pages.len());
        let mut charge = budget.reservation();
        charge.grow(self.own_bytes(slots))?;
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
        let own = if self.charge.bytes() == 0 { self.own_bytes(self.pages.capacity()) } else { 0 };
        self.pages.iter().map(Piece::unpaid).sum::<usize>() + own
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        if self.charge.bytes() == 0 {
            self.charge = charge.split(self.own_bytes(self.pages.capacity()));
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
        // Before there is a table for them. The first page may be of another form, and so of another size.
        let smallest = [0, 1].map(|number| layout.page_bytes(layout.format_of(number))).into_iter().min();
        reader.expect_pieces(pages, smallest.unwrap_or(0))?;
        let mut loaded = Self::starting_at(first, channels, format, page_tokens, self.charge.budget());
        loaded.layout = layout;
        let slots = table_capacity(0, pages);
        loaded.charge.grow(slots * size_of::<Piece>() + layout.center_bytes(!center.is_empty()))?;
        loaded.pages = VecDeque::with_capacity(slots);
        for number in first_page..first_page + pages {
            let bytes = layout.page_bytes(layout.format_of(number));
            loaded.pages.push_back(reader.piece(bytes, self.charge.budget())?);
        }
        loaded.shifted.reserve_exact(center.len());
        Ok(Self { len, first_page, center, ..loaded })
    }
}

impl PagedRows {
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
}
