//! Coded keys in a narrower float type.

use super::{
    Block, Matrix,
    block::{mask_bytes, seal},
};
use crate::{
    budget::{MemoryBudget, Reservation},
    delta::float::{FloatBlock, FloatCodec},
    element::ElementType,
    error::CoreError,
    piece::Piece,
};

impl Matrix<FloatCodec> {
    fn narrows_to(&self, element: ElementType) -> bool {
        element.bytes() < self.codec.element().bytes()
    }

    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub(crate) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut rows = Vec::new();
        if self.narrows_to(element) {
            for block in self.blocks() {
                // A key frame is the last row of the block before.
                self.keys(block, &mut rows);
                rows.chunks_exact(self.channels()).try_for_each(|row| element.check(row))?;
            }
        }
        Ok(())
    }

    /// Bytes that narrowing charges before it gives any back: for blocks that others share.
    pub(crate) fn narrow_growth(&self, element: ElementType) -> usize {
        if !self.narrows_to(element) {
            return 0;
        }
        let shared = self.sealed.iter().filter(|block| block.piece.is_shared());
        let bytes = |header: usize| mask_bytes(self.channels()) + header * element.bytes();
        shared.map(|block| Piece::data_bytes(bytes(block.header)) + Piece::OVERHEAD).sum()
    }

    /// `charge` pays for as much as [`narrow_growth`](Self::narrow_growth) says.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub(crate) fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if !self.narrows_to(element) {
            return Ok(());
        }
        let (unlimited, channels) = (MemoryBudget::unlimited(), self.channels());
        for block in &mut self.sealed {
            let Block { masks, codes } = Block::of_sealed(&self.codec, block, channels);
            let mut narrow = seal(&self.codec, masks, &FloatBlock::rounded(codes, element), &unlimited)?;
            drop(narrow.piece.uncharge());
            block.piece.uncharge().into_iter().for_each(|paid| charge.merge(paid));
            narrow.piece.charge_with(charge);
            *block = narrow;
        }
        self.codec.narrow(element, &mut self.rule);
        self.open.codes.narrow(element);
        self.charge.shrink(self.charge.bytes().saturating_sub(self.own_bytes()));
        self.count_sealed();
        Ok(())
    }
}
