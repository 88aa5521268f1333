//! What was measured, for people.

use deltallm::models::{Narrowed, SpeculationStats};

use super::run::{Difference, Run};
use crate::{
    Generation, KernelKind, LoadedModel, MemoryLimit, SkippedValues, format_bytes, note, peak_rss_bytes,
};

/// Everything, for people who want to know.
pub(super) fn describe(model: &LoadedModel, runs: &[Run], difference: Option<&Option<Difference>>) {
    let config = model.graph.config();
    note(format_args!(
        "model        {}: {} layers, {} heads, {} kv heads, head_dim {}, context {}",
        model.name, config.layers, config.heads, config.kv_heads, config.head_dim, config.context_length
    ));
    note(format_args!(
        "weights      {} in memory, read and packed in {:.2} s",
        format_bytes(model.graph.weights().bytes() as u64),
        model.loading.as_secs_f64()
    ));
    runs.iter().for_each(describe_run);
    if let Some(bytes) = peak_rss_bytes() {
        note(format_args!("memory       {} at the peak, model included", format_bytes(bytes)));
    }
    match (runs, difference) {
        (_, Some(Some(d))) => note(format_args!(
            "difference   token {} of the text is {:?}, with dense attention {:?}",
            d.index, d.token, d.dense_token
        )),
        ([run, dense], Some(None)) => {
            note(format_args!("difference   none in the {} tokens that both have", run.tokens_beside(dense)))
        }
        _ => {}
    }
}

/// What it comes to, in a line.
pub(super) fn line(run: &Run, dense: Option<&Run>, difference: Option<&Option<Difference>>) -> String {
    let share = 100.0 * run.generation.footprint.total() as f64 / run.dense_f16_bytes as f64;
    let cache = format!("cache {share:.0} % of f16");
    let Some((dense, difference)) = dense.zip(difference) else {
        let text = run.generation.decode_tokens_per_second();
        let text = text.map_or(String::new(), |speed| format!(", text at {speed:.0}"));
        let prompt = match run.generation.found {
            0 => format!("prompt at {:.0} tokens/s", run.prefill_tokens_per_second()),
            found => format!(
                "prompt in {:.2} s, {found} of its {} tokens had been read before",
                run.generation.prefill.as_secs_f64(),
                run.prompt_tokens
            ),
        };
        return format!("{cache}; {prompt}{text}");
    };
    let products = run.kernel.settings().precision.map_or("", |_| " with f32 products");
    let speed = match dense.attention_seconds() / run.attention_seconds() {
        // Times of different work say nothing of speed.
        _ if !run.did_as_much_as(dense) => String::new(),
        ratio if ratio >= 1.0 => format!("; attention {ratio:.1} times faster than dense{products}"),
        ratio => format!("; attention {:.1} times slower than dense{products}", 1.0 / ratio),
    };
    let tokens = run.tokens_beside(dense);
    let same = match difference {
        Some(difference) => format!("for the first {} of {tokens} tokens", difference.index),
        None if run.generation.tokens.len() == dense.generation.tokens.len() => {
            format!("in all {tokens} tokens")
        }
        None => format!("in the {tokens} tokens that both have"),
    };
    format!("{cache}{speed}; text identical {same}")
}

/// One kernel's part of it.
fn describe_run(run: &Run) {
    let Generation { tokens, stop, footprint, sparsity, .. } = &run.generation;
    let skipped = SkippedValues::new(sparsity, &run.generation.prompt_sparsity);
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    let bytes = |x: usize| format_bytes(x as u64);
    note(format_args!("kernel       {}", run.kernel));
    note(format_args!(
        "prompt       {} tokens at {:.1} tokens/s; first new token after {:.2} s",
        run.prompt_tokens,
        run.prefill_tokens_per_second(),
        run.generation.first_token.as_secs_f64()
    ));
    if run.generation.found > 0 {
        note(format_args!("             {} of them had been read before", run.generation.found));
    }
    match run.generation.decode_tokens_per_second() {
        Some(speed) => {
            note(format_args!("generated    {} tokens at {speed:.1} tokens/s ({stop})", tokens.len()))
        }
        None => note(format_args!("generated    {} tokens ({stop})", tokens.len())),
    }
    let SpeculationStats { drafted, accepted } = run.generation.speculation;
    if drafted > 0 {
        note(format_args!("             {drafted} tokens were drafted, {accepted} of them accepted"));
    }
    note(format_args!("attention    {:.3} s of that, all layers together", run.attention_seconds()));
    if run.kernel.kind() != KernelKind::Dense {
        note(format_args!(
            "sparsity     zero fraction {}, sparsity as the paper counts it {}",
            percent(sparsity.zero_fraction()),
            percent(sparsity.sparsity())
        ));
        note(format_args!("             {skipped}"));
    }
    note(format_args!(
        "cache        {} for {} tokens: keys {}, values {}, exact window {}, tables {}",
        bytes(footprint.total()),
        run.generation.cached_tokens,
        bytes(footprint.keys),
        bytes(footprint.values),
        bytes(footprint.window),
        bytes(footprint.bookkeeping)
    ));
    note(format_args!(
        "             {} of the {} that a dense f16 cache takes",
        percent(footprint.total() as f64 / run.dense_f16_bytes as f64),
        bytes(run.dense_f16_bytes)
    ));
    let says = "`deltallm inspect` says from which length on it is less";
    if footprint.total() > run.dense_f16_bytes && footprint.window > 0 {
        note(format_args!(
            "             more, because the exact window is held beside its coded keys; {says}"
        ));
    } else if footprint.total() == run.dense_f16_bytes && run.kernel.kind() == KernelKind::Hybrid {
        note(format_args!("             the same, because so short a context is held in f16; {says}"));
    }
    if let Some(MemoryLimit { bytes: limit, policy }) = run.limit {
        let narrowed = match run.generation.narrowed {
            Narrowed { times: 0, .. } => String::new(),
            Narrowed { times, bytes: freed } => {
                format!("; {policy} helped {times} times and gave {} back", bytes(freed))
            }
        };
        note(format_args!("budget       {} of {} used{narrowed}", bytes(footprint.total()), bytes(limit)));
        if let Some(refused) = &run.generation.refused {
            note(format_args!("             {refused}"));
        }
    }
}
