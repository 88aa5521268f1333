//! No value of a public argument makes anything here panic, abort or run for ever: it is answered or refused.

use deltallm_core::{
    CachePlan, CoreError, DeltaEncoder, DeltaMatrix, ElementType, Footprint, HeadSparsity, HeadThresholds,
    KeyPlan, KvStore, MemoryBudget, ModelFingerprint, SparsityStats, TargetSparsity, ThresholdPolicy,
    ThresholdProfile,
};

const SIZES: [usize; 6] = [0, 1, 70, 1 << 40, usize::MAX / 2, usize::MAX];
const SHARES: [f64; 7] = [0.0, 0.5, 1.0, -1.0, 1e300, f64::INFINITY, f64::NAN];
const NUMBERS: [f32; 9] =
    [0.0, 1.0, -1.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

fn plans() -> impl Iterator<Item = CachePlan> {
    let keys = SHARES.into_iter().flat_map(|share| {
        SIZES.map(|size| KeyPlan::Delta {
            zero_fraction: share,
            wide: share,
            escapes: share,
            window: size,
            sinks: size,
        })
    });
    keys.chain([KeyPlan::Dense]).flat_map(|keys| {
        let shapes = SIZES.into_iter().flat_map(|kv_heads| SIZES.map(|head_dim| (kv_heads, head_dim)));
        shapes.flat_map(move |(kv_heads, head_dim)| {
            KvStore::ALL.map(|store| CachePlan::new(kv_heads, head_dim, store, keys))
        })
    })
}

#[test]
fn a_cache_plan_of_usize_max_tokens() {
    for plan in plans() {
        for tokens in SIZES {
            let footprint = plan.footprint(tokens);
            assert!(footprint.total() >= footprint.keys.max(footprint.values), "{plan:?}");
        }
    }
}

#[test]
fn from_where_on_a_plan_holds_codes_ends_for_every_plan() {
    for plan in plans() {
        let from = plan.codes_from();
        assert!(from == usize::MAX || from.is_multiple_of(64), "{plan:?}");
    }
}

#[test]
fn thresholds_of_layer_usize_max() {
    let profile = ThresholdProfile::new(ModelFingerprint(1), [2, 1, 3], vec![0.5; 6]).unwrap();
    let policies = [
        ThresholdPolicy::Uniform(0.5),
        ThresholdPolicy::TargetSparsity(TargetSparsity::default()),
        ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.5).from_profile(profile.clone().into())),
        ThresholdPolicy::Profile(profile.clone().into()),
    ];
    for policy in policies {
        for layer in [0, 1, 2, usize::MAX - 1, usize::MAX] {
            for kv_heads in SIZES {
                for head_dim in SIZES {
                    let heads = policy.for_layer(layer, kv_heads, head_dim);
                    assert!(heads.is_err() || kv_heads <= 70 && head_dim <= 70, "{policy:?}");
                }
            }
        }
    }
    let beyond = ThresholdPolicy::Profile(profile.clone().into()).for_layer(usize::MAX, 1, 3).unwrap_err();
    assert!(matches!(beyond, CoreError::ProfileShape { what: "layers", got: 2, .. }), "{beyond}");
    for size in SIZES {
        assert!(profile.check(ModelFingerprint(1), [size; 3]).is_err());
        assert!(ThresholdProfile::new(ModelFingerprint(1), [size, size, 1], vec![0.5; 2]).is_err());
    }
}

#[test]
fn a_budget_and_its_reservations_take_any_number() {
    for limit in SIZES {
        let budget = MemoryBudget::new(limit);
        let mut reservation = budget.reservation();
        for bytes in SIZES {
            let _ = reservation.grow(bytes);
            assert!(budget.used() <= limit && budget.available() == limit - budget.used());
        }
        reservation.shrink(usize::MAX);
        assert_eq!((reservation.bytes(), budget.used()), (0, 0));
    }
}

#[test]
fn sums_that_are_too_large_stay_at_the_largest_number() {
    let mut footprint =
        Footprint { keys: usize::MAX, values: usize::MAX, window: usize::MAX, bookkeeping: usize::MAX };
    footprint += footprint;
    assert_eq!(footprint.total(), usize::MAX);

    let most = u64::MAX;
    let head =
        HeadSparsity { elements: 1, nonzeros: most, pairs: 1, exact_pairs: most, skipped_values: most };
    let mut stats = SparsityStats::new(vec![head; 2]);
    stats.merge(&stats.clone()).unwrap();
    for share in [stats.total().zero_fraction(), stats.total().sparsity(), stats.total().values_skipped()] {
        assert_eq!(share, 0.0);
    }
}

#[test]
fn any_threshold_and_any_number_are_coded_or_refused() {
    for start in NUMBERS {
        for target in NUMBERS.map(Some).into_iter().chain([None]) {
            let thresholds = || match target {
                Some(target) => HeadThresholds::with_target(vec![start; 3], target),
                None => vec![start; 3].into(),
            };
            for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
                let budget = MemoryBudget::unlimited();
                let matrices = [
                    DeltaMatrix::new(thresholds(), element, &budget),
                    DeltaMatrix::in_steps(thresholds(), &budget),
                ];
                let encoder = DeltaEncoder::new(thresholds(), element);
                assert_eq!(encoder.is_ok(), matrices.iter().all(Result::is_ok));
                for mut matrix in matrices.into_iter().flatten() {
                    for t in 0..150 {
                        let key = [0, 3, 5].map(|j| NUMBERS[(t + j) % NUMBERS.len()]);
                        let _ = matrix.push(&key);
                        let _ = matrix.push(&[0.25 * t as f32; 3]);
                    }
                    assert!(SIZES.iter().all(|tokens| matrix.growth(*tokens) <= matrix.growth(usize::MAX)));
                    assert!(matrix.truncate(usize::MAX).is_err());
                    let mut rows = Vec::new();
                    matrix.reconstruct(usize::MAX, &mut rows);
                    assert!(rows.is_empty());
                    let _ = matrix.to_float(ElementType::F16, &budget);
                    let _ = matrix.to_steps(&budget);
                }
            }
        }
    }
    for thresholds in [vec![], vec![0.5; (1 << 16) + 1]] {
        assert!(DeltaMatrix::in_steps(thresholds, &MemoryBudget::unlimited()).is_err());
    }
    for x in NUMBERS {
        ElementType::F16.round(x);
        assert_eq!(ElementType::F32.check(&[x]).is_ok(), x.is_finite());
    }
}
