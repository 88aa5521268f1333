//! `--kv-budget` and `--at-limit`: bytes for the caches, planned before they exist and obeyed while they grow.

use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use deltallm::models::{ModelConfig, PromptCache, Session};
use deltallm::{AtLimit, KvStore, MemoryBudget};
use serde::Serialize;

use crate::{AttentionTime, KernelChoice, KernelKind, LoadedModel, format_bytes};

/// Memory settings.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Most bytes for the key-value caches of all layers, such as 64MiB (B, kB, MB, GB, KiB, MiB, GiB)
    // A value such as -1B is to be refused as a value, not as an option.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, allow_hyphen_values = true)]
    kv_budget: Option<usize>,
    /// What to do when the budget is full: error stops; narrow converts the caches to the next smaller --kv and goes on
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = LimitPolicy::Error, hide_possible_values = true,
        requires = "kv_budget")]
    at_limit: LimitPolicy,
    /// Keep what has been read in this folder: a prompt that begins like an earlier one goes on from there
    #[arg(long, value_name = "DIR")]
    prompt_cache: Option<PathBuf>,
    /// Most bytes in that folder; what has not been used for the longest time is deleted
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "4GiB", requires = "prompt_cache")]
    prompt_cache_limit: usize,
}

/// [`AtLimit`] as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitPolicy {
    /// Stop
    Error,
    /// Convert to the next narrower store
    Narrow,
}

impl fmt::Display for LimitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Narrow => "narrow",
        })
    }
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: Option<usize> = match unit {
        "B" => Some(1),
        "kB" => Some(1000),
        "MB" => Some(1_000_000),
        "GB" => Some(1_000_000_000),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let whole = !number.is_empty();
    let unit = unit
        .filter(|_| whole)
        .ok_or("expected a whole number and a unit, B, kB, MB, GB, KiB, MiB or GiB, such as 64MiB")?;
    let bytes = number.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("expected at most {} GiB, such as 64MiB", usize::MAX >> 30))
}

impl MemoryArgs {
    /// Whether there is a limit.
    pub fn is_limited(&self) -> bool {
        self.kv_budget.is_some()
    }

    /// The folder of prompts that have been read before, if there is to be one.
    ///
    /// # Errors
    /// For a folder that cannot be made.
    pub fn prompt_cache(&self) -> anyhow::Result<Option<PromptCache>> {
        let Some(folder) = &self.prompt_cache else { return Ok(None) };
        anyhow::ensure!(
            !self.is_limited() || self.at_limit == LimitPolicy::Error,
            "--prompt-cache: expected --at-limit error, got narrow, with which prompts are cut wherever the budget ends; leave out one of both"
        );
        Ok(Some(PromptCache::new(folder, self.prompt_cache_limit as u64).context("--prompt-cache")?))
    }

    /// Checks the settings against the kernel's: the limit, or `None` without one.
    ///
    /// # Errors
    /// For a policy that cannot make this kernel's cache any smaller.
    pub fn resolve(&self, kernel: &KernelChoice) -> anyhow::Result<Option<MemoryLimit>> {
        let Some(bytes) = self.kv_budget else { return Ok(None) };
        anyhow::ensure!(
            self.at_limit == LimitPolicy::Error || !kernel.store().is_quantised(),
            "--at-limit narrow: expected --kv f32, f16 or bf16, got {}, which is as narrow as it gets",
            kernel.store()
        );
        Ok(Some(MemoryLimit { bytes, policy: self.at_limit }))
    }
}

/// A number of bytes for the caches of a sequence, and what to do when they are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimit {
    /// For all layers together.
    pub bytes: usize,
    /// What happens at the limit.
    pub policy: LimitPolicy,
}

impl MemoryLimit {
    /// An empty sequence that stays within the limit, with the time of its attention.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(
        &self,
        model: &LoadedModel,
        kernel: &KernelChoice,
        time: &AttentionTime,
    ) -> anyhow::Result<Session> {
        let budget = MemoryBudget::new(self.bytes);
        let kernel = kernel.with_budget(budget.clone());
        let mut session = Session::new(model.graph.clone(), |layer| kernel.make_timed(layer, time))?;
        session.limit_memory(
            budget,
            match self.policy {
                LimitPolicy::Error => AtLimit::Error,
                LimitPolicy::Narrow => AtLimit::NarrowStore,
            },
        )?;
        Ok(session)
    }

    /// Checks, where the policy is to stop, that a prompt of this length is not hopeless: that it fits if all deltas
    /// but those of the first key are zero.
    ///
    /// # Errors
    /// With the bytes it would take at least.
    pub fn check_prompt(
        &self,
        config: &ModelConfig,
        kernel: &KernelChoice,
        tokens: usize,
    ) -> anyhow::Result<()> {
        let least = kernel.planned_bytes_at(1.0, config, tokens);
        anyhow::ensure!(
            self.policy != LimitPolicy::Error || least <= self.bytes,
            "--kv-budget: expected at least {} for the prompt of {tokens} tokens, got {}; give more, shorten the \
             prompt, or choose a narrower --kv",
            format_bytes(least as u64),
            format_bytes(self.bytes as u64)
        );
        Ok(())
    }

    /// The context that fits, store by store: `[name, tokens]`.
    fn contexts(&self, config: &ModelConfig, kernel: &KernelChoice) -> Vec<(String, usize)> {
        let kinds = match kernel.kind() {
            KernelKind::Dense => vec![KernelKind::Dense],
            kind => vec![KernelKind::Dense, kind],
        };
        let rows = kinds.into_iter().flat_map(|kind| {
            let narrowest = if kind == KernelKind::Dense { KvStore::Int8 } else { KvStore::Compact };
            [KvStore::F32, KvStore::F16, narrowest].map(|store| {
                let kernel = kernel.with_kernel(kind, store);
                let tokens = most(|tokens| kernel.planned_bytes(config, tokens) <= self.bytes);
                (format!("{kind} {store}"), tokens)
            })
        });
        rows.collect()
    }

    /// The plan, for people.
    pub fn describe(&self, config: &ModelConfig, kernel: &KernelChoice) -> String {
        let mut text = format!(
            "kv budget    {} for {} layers; at the limit: {}\n",
            format_bytes(self.bytes as u64),
            config.layers,
            self.policy
        );
        for (store, tokens) in self.contexts(config, kernel) {
            // Where all layers have a window a budget holds any number.
            let tokens = if tokens < MOST { tokens.to_string() } else { "all".to_owned() };
            text += &format!("             {store:<14} holds {tokens:>9} tokens\n");
        }
        text += &format!("             the model      takes {:>9}\n", config.context_length);
        if kernel.kind() != KernelKind::Dense {
            let percent = 100.0 * kernel.expected_zero_fraction();
            text += &format!("             ({} if {percent:.0} % of its deltas are zero)\n", kernel.kind());
        }
        text
    }
}

/// No cache on earth has 2^40 tokens.
const MOST: usize = (1 << 40) - 1;

/// The largest number of tokens up to [`MOST`] that fits, where fewer always do.
fn most(fits: impl Fn(usize) -> bool) -> usize {
    (0..40)
        .rev()
        .map(|bit| 1 << bit)
        .fold(0, |tokens, more| if fits(tokens + more) { tokens + more } else { tokens })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_that_fits_is_found() {
        for limit in [0, 1, 2, 1000, MOST] {
            assert_eq!(most(|tokens| tokens <= limit), limit);
        }
    }

    #[test]
    fn bytes_parse() {
        for (text, bytes) in
            [("0B", 0), ("64MiB", 64 << 20), ("3kB", 3000), ("1GiB", 1 << 30), ("7KiB", 7168)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for bad in ["", "64", "MiB", "64mib", "64 MiB", "1.5GiB", "-1B", "+1B", "1e3B"] {
            assert!(parse_bytes(bad).unwrap_err().contains("whole number and a unit"), "{bad}");
        }
        for large in ["99999999999999999999B", "99999999999GiB"] {
            assert!(parse_bytes(large).unwrap_err().contains("at most 17179869183 GiB"), "{large}");
        }
    }
}
