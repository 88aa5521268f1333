//! Lines for people that perplexity and tasks share.

use deltallm::core::HeadSparsity;

use crate::{Comparison, Setup, SkippedValues};

/// A standard error behind its number. One example alone says nothing about its spread.
pub(super) fn give_or_take(error: f64, digits: usize) -> String {
    if error.is_finite() { format!("± {error:.digits$} ") } else { String::new() }
}

/// How far two runs are apart.
pub(super) fn comparison_line(comparison: &Comparison, setup: &Setup) -> String {
    format!(
        "             KL(dense || {}) {:.5} nats, same top token {:.2} %",
        setup.kernel.kind(),
        comparison.kl(),
        100.0 * comparison.top1_agreement()
    )
}

/// What was left out.
pub(super) fn sparsity(sparsity: &HeadSparsity, skipped: &SkippedValues) -> [String; 2] {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    [
        format!(
            "sparsity     zero fraction {}, exact pairs {}, sparsity as the paper counts it {}",
            percent(sparsity.zero_fraction()),
            percent(sparsity.exact_share()),
            percent(sparsity.sparsity())
        ),
        format!("             {skipped}"),
    ]
}

/// A warning where the numbers are those of dense attention.
pub(super) fn nothing_approximated(sparsity: &HeadSparsity) -> Option<&'static str> {
    if sparsity.pairs > 0 && sparsity.exact_pairs == sparsity.pairs {
        return Some(
            "warning      nothing was approximated: every text was short enough to be attended exactly; take longer ones, or \
             --exact-prompt 0",
        );
    }
    let deltas = sparsity.elements > 0;
    let nothing = deltas && sparsity.nonzeros == sparsity.elements && sparsity.skipped_values == 0;
    nothing.then_some(
        "warning      nothing was approximated: no delta was left out and no value skipped; take a higher --theta or \
         --target-sparsity, or a --skip-margin",
    )
}
