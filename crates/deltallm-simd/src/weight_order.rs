//! Weights that are read once, line by line: in which order they are asked for, which CPUs do not agree on.
//!
//! An AMD EPYC (Zen 4) reads best in order: its own prefetching is good at that, and asking for the line a page further on takes it over
//! the ends of pages. An Intel Xeon (Sapphire Rapids) keeps so many lines of a page under way and stops at its end, and gets more
//! out of several pages at a time. What it takes to see the difference is some ten megabytes that are in no near cache, so it is
//! not measured before there are weights, but with them: the first tokens try both ([`OrderTrial`]). A token of SmolLM2-135M (Q4_1) took 4.5 ms
//! in the one order and 3.9 in the other on the Xeon (28 November 2026); on the EPYC the other takes a fifth longer.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use crate::{
    prefetch::{LINE, prefetch_l2},
    tuning::{ORDER_TRIALS, PAGES_IN_TURN},
};

/// Bytes of a page.
const PAGE: usize = 4096;

/// Which line is asked for when weights are read. It does not change any result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightOrder {
    /// The line a page further on.
    #[default]
    PageAhead,
    /// For the lines of [`PAGES_IN_TURN`] pages one after the other, all lines of the next so many pages, one of each page in turn.
    PagesInTurn,
}

impl WeightOrder {
    const ALL: [Self; 2] = [Self::PageAhead, Self::PagesInTurn];

    /// Asks for a cache line that comes some way after `weights`, which are read line by line.
    #[inline(always)]
    pub fn prefetch_after<T>(self, weights: &T) {
        let here = std::ptr::from_ref(weights).cast::<u8>();
        prefetch_l2(match self {
            Self::PageAhead => here.wrapping_add(PAGE),
            Self::PagesInTurn => in_turn(here),
        });
    }
}

/// The line to ask for when `here` is read, so that those of the next pages come in turn.
#[inline(always)]
fn in_turn(here: *const u8) -> *const u8 {
    const PAGES: usize = PAGES_IN_TURN;
    let line = here.addr() % (PAGES * PAGE) / LINE;
    let ahead = PAGES * PAGE + line % PAGES * PAGE + line / PAGES * LINE;
    here.wrapping_sub(line * LINE).wrapping_add(ahead)
}

/// Finds the faster order for some weights while they are read: the first passes over them take the orders in turn, all later ones the
/// one that was fastest at best.
#[derive(Debug, Default)]
pub struct OrderTrial {
    passes: AtomicUsize,
    /// The shortest time that a pass took with each order, in nanoseconds, inverted: zero is for none yet.
    shortest: [AtomicU64; 2],
}

impl OrderTrial {
    /// The order for the next pass.
    pub fn order(&self) -> WeightOrder {
        let passes = self.passes.load(Ordering::Relaxed);
        if passes < 2 * ORDER_TRIALS {
            return WeightOrder::ALL[passes % 2];
        }
        let [ahead, in_turn] = self.shortest.each_ref().map(|time| time.load(Ordering::Relaxed));
        if in_turn > ahead { WeightOrder::PagesInTurn } else { WeightOrder::PageAhead }
    }

    /// Whether there is more to be measured.
    pub fn is_open(&self) -> bool {
        self.passes.load(Ordering::Relaxed) < 2 * ORDER_TRIALS
    }

    /// A pass took so long with that order.
    pub fn add(&self, order: WeightOrder, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.shortest[order as usize].fetch_max(!nanoseconds, Ordering::Relaxed);
        self.passes.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_that_is_faster_at_best_is_taken_whatever_disturbs_it() {
        for faster in WeightOrder::ALL {
            let trial = OrderTrial::default();
            let mut tried = [0; 2];
            for pass in 0..2 * ORDER_TRIALS {
                assert!(trial.is_open());
                let order = trial.order();
                tried[order as usize] += 1;
                // Other work slows all passes but one of each order down.
                let best = if order == faster { 900 } else { 1000 };
                let disturbed = if pass / 2 == 3 { 0 } else { 300 + (pass as u64 * 7) % 500 };
                trial.add(order, Duration::from_micros(best + disturbed));
            }
            assert_eq!((trial.is_open(), trial.order(), tried), (false, faster, [ORDER_TRIALS; 2]));
        }
    }

    #[test]
    fn pages_in_turn_ask_for_every_line_of_the_next_pages_once() {
        let size = PAGES_IN_TURN * PAGE;
        let start = std::ptr::without_provenance::<u8>(5 * size);
        let mut asked: Vec<usize> =
            (0..size).step_by(LINE).map(|byte| in_turn(start.wrapping_add(byte)).addr()).collect();
        let first: Vec<usize> = asked[..PAGES_IN_TURN].iter().map(|line| (line - 6 * size) / PAGE).collect();
        assert_eq!(first, (0..PAGES_IN_TURN).collect::<Vec<_>>());
        asked.sort_unstable();
        assert_eq!(asked, (6 * size..7 * size).step_by(LINE).collect::<Vec<_>>());
    }
}
