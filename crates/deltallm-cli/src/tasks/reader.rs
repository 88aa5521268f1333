//! Prompts that begin alike: the beginning is read once, and the rest of each behind it.

use deltallm::AttentionKernel;
use deltallm::core::{BLOCK_TOKENS, HeadSparsity};
use deltallm::models::{LogitRows, Model, ModelError};
use ndarray::Array2;

use super::batch::{make_kernels, prefill, sparsity};
use crate::KernelChoice;
use crate::kernels::OpenStep;

/// Beginnings that are held at once. Where settings depend on a prompt's length, prompts of other lengths need another.
const MOST_HELD: usize = 8;

/// Reads prompts with one kernel.
pub(super) struct Reader<'s> {
    model: &'s Model,
    kernel: &'s KernelChoice,
    beginning: Vec<u32>,
    /// The one that was used last comes last.
    held: Vec<Beginning>,
}

/// What a prompt came to.
pub(super) struct Reading {
    /// After its last tokens, as many as were asked for, `[rows, vocab_size]`.
    pub(super) logits: Array2<f32>,
    /// Of all layers and heads, and of the whole prompt, however much of it had been read before.
    pub(super) sparsity: HeadSparsity,
}

impl<'s> Reader<'s> {
    /// `beginning` is what most prompts begin with, which may be nothing.
    pub(super) fn new(model: &'s Model, kernel: &'s KernelChoice, beginning: Vec<u32>) -> Self {
        Self { model, kernel, beginning, held: Vec::new() }
    }

    /// Reads prompts; each comes with the number of its last tokens whose logits are wanted.
    pub(super) fn read(&mut self, prompts: &[(&[u32], usize)]) -> Result<Vec<Reading>, ModelError> {
        let mut whole = Vec::new();
        let mut readings = Vec::new();
        for &(tokens, rows) in prompts {
            readings.push(match self.shared(tokens, rows) {
                0 => {
                    whole.push((tokens, LogitRows::Tail(rows)));
                    None
                }
                shared => Some(self.read_rest(shared, tokens, rows)?),
            });
        }
        let mut whole = prefill(self.model, self.kernel, &whole)?.into_iter();
        let mut of_whole = || {
            let read = whole.next()?;
            Some(Reading { sparsity: sparsity(&read.kernels), logits: read.logits })
        };
        Ok(readings.into_iter().filter_map(|reading| reading.or_else(&mut of_whole)).collect())
    }

    /// How many tokens of a prompt are not read again: whole blocks, as a prompt is attended tile by tile.
    fn shared(&self, tokens: &[u32], rows: usize) -> usize {
        let alike = tokens.iter().zip(&self.beginning).take_while(|(a, b)| a == b).count();
        alike.min(tokens.len() - rows) / BLOCK_TOKENS * BLOCK_TOKENS
    }

    /// Reads a prompt of which the first `shared` tokens may have been read before.
    fn read_rest(&mut self, shared: usize, tokens: &[u32], rows: usize) -> Result<Reading, ModelError> {
        let fits =
            |held: &Beginning| held.tokens == shared && self.kernel.reads_alike(held.prompt, tokens.len());
        let mut beginning = match self.held.iter().position(fits) {
            Some(index) => self.held.remove(index),
            None => Beginning::read(self.model, self.kernel, &tokens[..shared], tokens.len())?,
        };
        let reading = beginning.go_on(self.model, &tokens[shared..], rows)?;
        if self.held.len() == MOST_HELD {
            self.held.remove(0);
        }
        self.held.push(beginning);
        Ok(reading)
    }
}

/// The caches behind a beginning.
struct Beginning {
    tokens: usize,
    /// Tokens of the prompt that it was read for.
    prompt: usize,
    kernels: Vec<OpenStep>,
    sparsity: HeadSparsity,
}

impl Beginning {
    /// Reads the first tokens of a prompt of `prompt` tokens.
    fn read(model: &Model, kernel: &KernelChoice, tokens: &[u32], prompt: usize) -> Result<Self, ModelError> {
        let mut kernels = make_kernels(model, kernel, prompt)?;
        model.forward(tokens, &mut kernels, LogitRows::None)?;
        Ok(Self {
            tokens: tokens.len(),
            prompt,
            sparsity: sparsity(&kernels),
            kernels: kernels.into_iter().map(OpenStep::new).collect(),
        })
    }

    /// Reads the rest of a prompt, and forgets it again.
    fn go_on(&mut self, model: &Model, rest: &[u32], rows: usize) -> Result<Reading, ModelError> {
        let before = sparsity(&self.kernels);
        self.kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(rest.len()));
        let logits = model.forward(rest, &mut self.kernels, LogitRows::Tail(rows))?;
        let after = sparsity(&self.kernels);
        for (layer, kernel) in self.kernels.iter_mut().enumerate() {
            kernel.undo_step(self.tokens).map_err(|source| ModelError::Attention { layer, source })?;
        }
        // Kernels count the pairs of everything they ever attended, but the deltas of what they hold.
        let of_prompt =
            |count: fn(&HeadSparsity) -> u64| count(&self.sparsity) + count(&after) - count(&before);
        let sparsity = HeadSparsity {
            elements: after.elements,
            nonzeros: after.nonzeros,
            pairs: of_prompt(|sum| sum.pairs),
            exact_pairs: of_prompt(|sum| sum.exact_pairs),
            skipped_values: of_prompt(|sum| sum.skipped_values),
        };
        Ok(Reading { logits, sparsity })
    }
}

#[cfg(test)]
mod tests {
    use deltallm::models::LinearForm;

    use super::*;
    use crate::{KernelArgs, LoadedModel};

    /// Several blocks of 64 tokens.
    const BEGINNING: &str = "The king had three sons. Once upon a time there was a wolf who ate the little girl. \
        A fox came along the road to the castle, and the princess said to him that she was hungry. ";
    const TIMES: usize = 6;

    fn kernel(model: &LoadedModel, options: &[&str]) -> KernelChoice {
        KernelArgs::parse(options.iter().copied()).unwrap().resolve(&model.graph).unwrap()
    }

    /// Prompts of many lengths behind the beginning, one that has other words, and the rows that are wanted of each.
    fn prompts(model: &LoadedModel) -> (Vec<u32>, Vec<(Vec<u32>, usize)>) {
        let beginning = BEGINNING.repeat(TIMES);
        let encode = |text: &str| model.encode(text).unwrap();
        let rests = (1..9)
            .map(|times| "And the queen went home to the castle. ".repeat(times))
            .chain(["so".to_owned()]);
        let mut prompts: Vec<_> = rests.map(|rest| (encode(&(beginning.clone() + &rest)), 1)).collect();
        prompts[3].1 = 5;
        prompts.push((encode(&"A frog sat in the well. ".repeat(20)), 3));
        // The beginning and no more: not all of it can have been read.
        let alone = encode(&beginning);
        prompts.push((alone[..alone.len() / BLOCK_TOKENS * BLOCK_TOKENS].to_vec(), 2));
        (alone, prompts)
    }

    /// Readings with a beginning in common and without, and how many beginnings were held.
    fn both(model: &LoadedModel, options: &[&str]) -> (Vec<Reading>, Vec<Reading>, usize) {
        let kernel = kernel(model, options);
        let (beginning, prompts) = prompts(model);
        let prompts: Vec<_> = prompts.iter().map(|(tokens, rows)| (&tokens[..], *rows)).collect();
        let mut sharing = Reader::new(&model.graph, &kernel, beginning);
        // In two goes, so that what is held is used after other prompts have been read.
        let (first, second) = prompts.split_at(6);
        let mut shared = sharing.read(first).unwrap();
        shared.extend(sharing.read(second).unwrap());
        let whole = Reader::new(&model.graph, &kernel, Vec::new()).read(&prompts).unwrap();
        assert!(!sharing.held.is_empty() && shared.len() == whole.len(), "{options:?}: nothing was shared");
        (shared, whole, sharing.held.len())
    }

    /// The largest difference between logits.
    fn difference(a: &[Reading], b: &[Reading]) -> f32 {
        let pairs = a.iter().zip(b).flat_map(|(a, b)| a.logits.iter().zip(&b.logits));
        pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
    }

    #[test]
    fn what_is_read_behind_a_beginning_equals_what_is_read_whole() {
        let model = LoadedModel::open(None).unwrap();
        for options in [
            &["--kernel", "dense"][..],
            &["--kernel", "dense", "--kv", "int8"],
            &["--kernel", "delta", "--profile", "none", "--theta", "1"],
            &["--window", "4", "--theta", "1"],
            &["--window", "4", "--theta", "1", "--phases", "prefill"],
            &["--window", "16", "--target-sparsity", "0.5"],
            &["--window", "16", "--theta", "1", "--kv", "compact"],
            &["--window", "16", "--kv", "int8", "--skip-margin", "off"],
            &["--window", "16", "--theta", "1", "--exact-prompt", "280"],
            &["--paper"],
        ] {
            let (shared, whole, _) = both(&model, options);
            for (index, (shared, whole)) in shared.iter().zip(&whole).enumerate() {
                assert_eq!(shared.logits.dim(), whole.logits.dim());
                assert_eq!(shared.sparsity, whole.sparsity, "{options:?}, prompt {index}");
            }
            let off = difference(&shared, &whole);
            assert!(off < 1e-4, "{options:?}: logits off by {off}");
        }
    }

    /// Whether a value is skipped hangs on sums whose last bits depend on what is read in one call. Rounding activations to 8 bits
    /// would make more of them.
    #[test]
    fn where_values_are_skipped_only_last_bits_differ() {
        let model = LoadedModel::open_as(None, LinearForm::F32).unwrap();
        for options in [
            &["--window", "16", "--theta", "1", "--skip-margin", "6"][..],
            &["--window", "16", "--kv", "int8", "--skip-margin", "6"],
            &["--exact-prompt", "0"],
        ] {
            let (shared, whole, _) = both(&model, options);
            let off = difference(&shared, &whole);
            assert!(off < 1e-3, "{options:?}: logits off by {off}");
            let skipped = |readings: &[Reading]| {
                readings.iter().map(|reading| reading.sparsity.skipped_values as f64).sum::<f64>()
            };
            let share = skipped(&shared) / skipped(&whole);
            assert!((share - 1.0).abs() < 1e-3, "{options:?}: {share} times the values skipped");
        }
    }

    #[test]
    fn a_beginning_is_read_again_only_where_a_prompt_s_length_matters() {
        let model = LoadedModel::open(None).unwrap();
        // Of the prompts one shares less: it ends before the last block does.
        let held = |options: &[&str]| both(&model, options).2;
        assert_eq!(held(&["--kernel", "dense"]), 2);
        assert_eq!(held(&["--window", "16", "--theta", "1"]), 2);
        // Some are short enough to be exact.
        assert_eq!(held(&["--window", "16", "--theta", "1", "--exact-prompt", "280"]), 3);
        // Blocks of 13 to 16 tokens, and of 10.
        assert_eq!(held(&["--paper"]), 5);
        // Most lengths have a block of their own.
        assert_eq!(held(&["--paper", "--window", "block:0.5"]), MOST_HELD);
    }
}
