//! Tests of rows in pages.

use super::*;
use crate::{
    element::ElementType,
    token_store::{TokenStore, exchange},
};

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
    let row = |t: usize| (0..37).map(|j| (0.3 * (t * 37 + j) as f32).sin() + j as f32).collect::<Vec<_>>();
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
    let narrow = rows.converted(ElementType::F16, &MemoryBudget::unlimited())?;
    exchange(rows, narrow).map(|_| ())
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
    assert_eq!(first_column(&rows, 0..10), (0..10).map(|t| t as f32).collect::<Vec<_>>());
    drop(fork);
    rows.push(&[0.0; 2]).unwrap();
    narrow(&mut rows).unwrap();
    assert_eq!(budget.used(), bytes(&rows));
}
