//! Which keys a query sees exactly.

use std::{fmt, ops::Range, str::FromStr};

use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};

#[cfg(feature = "serde")]
use crate::json::NumberOrText;
use crate::{AttentionError, Mask, saved::invalid};

/// The local context window of hybrid attention (`docs/method.md`, equation 4).
///
/// ```
/// use deltallm_attn::ExactWindow;
///
/// assert_eq!("64".parse::<ExactWindow>()?, ExactWindow::Sliding(64));
/// assert_eq!(ExactWindow::Block { scale: 0.05 }.to_string(), "block:0.05");
/// assert!("0".parse::<ExactWindow>().is_err());
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "NumberOrText", into = "String")
)]
#[non_exhaustive]
pub enum ExactWindow {
    /// The most recent keys, the query's own included: this many, at least one.
    Sliding(usize),
    /// The paper's block-diagonal window. A prompt that ends at token `n` is cut into blocks of `round(scale * n)`
    /// tokens (at least one) and a query sees the keys of its own block up to itself; after the prompt the window is
    /// the most recent block's worth of keys.
    Block {
        /// Block length as a share of the prompt, in (0, 1].
        scale: f32,
    },
}

/// `64`, or `block:0.05`.
impl fmt::Display for ExactWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sliding(keys) => write!(f, "{keys}"),
            Self::Block { scale } => write!(f, "block:{scale}"),
        }
    }
}

impl FromStr for ExactWindow {
    type Err = AttentionError;

    fn from_str(text: &str) -> Result<Self, AttentionError> {
        let expected = "a number of keys >= 1, or block:SCALE with a SCALE in (0, 1]";
        let window = match text.strip_prefix("block:") {
            Some(scale) => scale.parse().ok().map(|scale| Self::Block { scale }),
            None => text.parse().ok().map(Self::Sliding),
        };
        let window = window.filter(|window| window.check().is_ok());
        window.ok_or_else(|| AttentionError::Name { what: "window", expected, got: text.to_owned() })
    }
}

#[cfg(feature = "serde")]
impl TryFrom<NumberOrText> for ExactWindow {
    type Error = AttentionError;

    fn try_from(text: NumberOrText) -> Result<Self, AttentionError> {
        text.to_string().parse()
    }
}

#[cfg(feature = "serde")]
impl From<ExactWindow> for String {
    fn from(window: ExactWindow) -> Self {
        window.to_string()
    }
}

impl ExactWindow {
    pub(crate) fn check(self) -> Result<(), AttentionError> {
        let setting = |setting, expected, got| Err(AttentionError::Setting { setting, expected, got });
        match self {
            Self::Sliding(0) => setting("window", "a sliding window of at least 1 key", 0.0),
            Self::Block { scale } if !(scale > 0.0 && scale <= 1.0) => {
                setting("window", "a block scale in (0, 1]", f64::from(scale))
            }
            _ => Ok(()),
        }
    }
}

/// An [`ExactWindow`] with the prompt's length filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowState {
    /// Keys in the window: of a sliding one, or of a block.
    keys: usize,
    /// Queries before this position see blocks, later ones slide.
    prompt_end: usize,
    /// Queries before this position see everything: a prompt that is short enough.
    exact_until: usize,
    /// Up to this length the cache holds no codes, and queries see everything as well.
    codes_from: usize,
}

impl WindowState {
    /// No key is exact: delta everywhere.
    pub(crate) const NONE: Self = Self { keys: 0, prompt_end: 0, exact_until: 0, codes_from: 0 };

    /// The window for a prompt that ends at token `prompt_end`.
    pub(crate) fn new(window: ExactWindow, prompt_end: usize) -> Self {
        match window {
            ExactWindow::Sliding(keys) => Self { keys, ..Self::NONE },
            ExactWindow::Block { scale } => {
                let keys = (f64::from(scale) * prompt_end as f64).round() as usize;
                Self { keys: keys.max(1), prompt_end, ..Self::NONE }
            }
        }
    }

    /// Adds what [`load`](Self::load) needs.
    pub(crate) fn save(&self, writer: &mut SnapshotWriter) {
        let Self { keys, prompt_end, exact_until, codes_from: _ } = *self;
        [keys, prompt_end, exact_until].into_iter().for_each(|count| writer.count(count));
    }

    /// The state of this window that is next, but for the length from which on there are codes.
    ///
    /// # Errors
    /// [`SnapshotError::Invalid`] for one that the window is never in.
    pub(crate) fn load(
        window: Option<ExactWindow>,
        exact_prompt: usize,
        reader: &mut SnapshotReader,
    ) -> Result<Self, SnapshotError> {
        let [keys, prompt_end, exact_until] = [(); 3].map(|()| reader.count("tokens", usize::MAX));
        let state = Self { keys: keys?, prompt_end: prompt_end?, exact_until: exact_until?, codes_from: 0 };
        // No longer prompt is exact as a whole.
        let fits = state.exact_until <= exact_prompt
            && match window {
                None => state == Self::NONE,
                Some(ExactWindow::Sliding(keys)) => state.keys == keys && state.prompt_end == 0,
                Some(ExactWindow::Block { .. }) => state.keys > 0,
            };
        if fits { Ok(state) } else { Err(invalid("keys", "a window as the settings have it", state.keys)) }
    }

    /// The same, but queries before `position` see every key exactly.
    pub(crate) fn exact_until(self, position: usize) -> Self {
        Self { exact_until: position, ..self }
    }

    /// The same for a cache that holds no codes before there are `tokens` tokens.
    pub(crate) fn codes_from(self, tokens: usize) -> Self {
        Self { codes_from: tokens, ..self }
    }

    /// No cache is shorter than this when its first token is coded.
    pub(crate) fn first_codes(&self) -> usize {
        self.keys.max(self.codes_from)
    }

    /// Keys in the window.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    /// Whether the query at `position` sees every key exactly.
    fn sees_all_exactly(&self, position: usize) -> bool {
        position < self.exact_until.max(self.codes_from)
    }

    /// The same for a prompt that has been cut back to `len` tokens: what follows slides.
    pub(crate) fn after_cut(self, len: usize) -> Self {
        let (prompt_end, exact_until) = (self.prompt_end.min(len), self.exact_until.min(len));
        Self { prompt_end, exact_until, ..self }
    }

    /// The first key that the query at `position` sees exactly; up to and including `position` all are exact.
    pub(crate) fn start(&self, position: usize) -> usize {
        if self.sees_all_exactly(position) {
            0
        } else if position < self.prompt_end {
            position / self.keys * self.keys
        } else {
            position.saturating_add(1).saturating_sub(self.keys)
        }
    }

    /// The end of the keys that any of the queries at `positions` sees through codes, the sinks left aside.
    pub(crate) fn far_until(&self, positions: Range<usize>) -> usize {
        // Windows only move on, but for the end of a prompt in blocks.
        let ends = [positions.end, self.prompt_end]
            .into_iter()
            .filter(|end| (positions.start + 1..=positions.end).contains(end));
        ends.map(|end| self.start(end - 1)).max().unwrap_or(0)
    }

    /// The first key that any query from `position` on may need exactly.
    pub(crate) fn needed_from(&self, position: usize) -> usize {
        if self.sees_all_exactly(position) {
            return 0;
        }
        position.saturating_add(1).saturating_sub(self.keys)
    }
}

/// Divides the keys that a query attends to among the ways of scoring them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub(crate) mask: Mask,
    /// Tokens in the cache, those of the call included.
    pub(crate) tokens: usize,
    pub(crate) window: WindowState,
    /// Exact keys before this one are no longer held (after a cut they do not come back), so they count as far.
    pub(crate) exact_from: usize,
    pub(crate) sinks: usize,
}

/// A share of the keys of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Every key.
    All,
    /// The first keys, as far as they lie before the window.
    Sinks,
    /// The exact window.
    Window,
    /// Everything between sinks and window.
    Far,
}

impl Split {
    /// The keys that the query at `position` takes from `part`. Sinks, window and far make up all.
    pub(crate) fn range(&self, part: Part, position: usize) -> Range<usize> {
        let (first, end) = (self.mask.first_key(position), self.mask.end(position, self.tokens));
        let window = self.window.start(position).max(self.exact_from).max(first).min(end);
        // Tokens that come after the query are as exact as itself.
        let window = if self.window == WindowState::NONE { end } else { window };
        let sinks = self.sinks.min(window);
        match part {
            Part::All => first..end,
            Part::Sinks => first.min(sinks)..sinks,
            Part::Window => window..end,
            Part::Far => first.max(sinks)..window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sliding_window_counts_the_query_itself() {
        let window = WindowState::new(ExactWindow::Sliding(3), 100);
        assert_eq!([0, 1, 2, 3, 10].map(|p| window.start(p)), [0, 0, 0, 1, 8]);
    }

    #[test]
    fn blocks_in_the_prompt_and_a_slide_after_it() {
        let window = WindowState::new(ExactWindow::Block { scale: 0.2 }, 20);
        assert_eq!([0, 3, 4, 7, 19].map(|p| window.start(p)), [0, 0, 4, 4, 16]);
        assert_eq!([20, 21].map(|p| window.start(p)), [17, 18]);
    }

    #[test]
    fn a_block_is_its_share_of_the_prompt_rounded() {
        let keys = |scale, prompt_end| WindowState::new(ExactWindow::Block { scale }, prompt_end).keys();
        assert_eq!([keys(0.05, 33), keys(0.05, 26), keys(0.05, 3)], [2, 1, 1]);
    }

    #[test]
    fn what_follows_a_cut_prompt_slides() {
        let window = WindowState::new(ExactWindow::Block { scale: 0.2 }, 20).exact_until(20).after_cut(10);
        assert_eq!([9, 10, 11, 15].map(|p| window.start(p)), [0, 7, 8, 12]);
    }

    #[test]
    fn what_is_needed_covers_every_later_query() {
        let sliding = WindowState::new(ExactWindow::Sliding(5), 0);
        let blocks = WindowState::new(ExactWindow::Block { scale: 0.13 }, 50);
        for window in [sliding, blocks, sliding.exact_until(30), blocks.exact_until(50)] {
            for position in 0..100 {
                assert!((position..120).all(|later| window.start(later) >= window.needed_from(position)));
            }
        }
    }

    #[test]
    fn what_is_far_covers_every_query_of_the_call() {
        let sliding = WindowState::new(ExactWindow::Sliding(5), 0);
        let blocks = WindowState::new(ExactWindow::Block { scale: 0.13 }, 50);
        for window in [sliding, blocks, sliding.exact_until(30), blocks.codes_from(30), WindowState::NONE] {
            for (first, end) in (0..60).flat_map(|first| (first + 1..=60).map(move |end| (first, end))) {
                let starts = (first..end).map(|position| window.start(position));
                assert_eq!(starts.max(), Some(window.far_until(first..end)), "{window:?}, {first}..{end}");
            }
        }
    }

    #[test]
    fn windows_read_back_what_they_write() {
        for text in ["64", "block:0.05"] {
            assert_eq!(text.parse::<ExactWindow>().unwrap().to_string(), text);
        }
        for bad in ["0", "-1", "", "block", "block:", "block:0", "block:1.5", "block:nan", "1.5"] {
            assert!(bad.parse::<ExactWindow>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_windows_are_refused() {
        for bad in [
            ExactWindow::Sliding(0),
            ExactWindow::Block { scale: 0.0 },
            ExactWindow::Block { scale: f32::NAN },
            ExactWindow::Block { scale: 1.5 },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
