//! A progress bar for what takes long enough to wonder.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work is shown once it has taken this long.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bar on stderr, if that is a terminal and the work is not done at once. It disappears when dropped.
pub struct Progress {
    label: &'static str,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts the clock; nothing is drawn yet.
    pub fn new(label: &'static str) -> Self {
        Self { label, start: Instant::now(), bar: None }
    }

    /// Tells how much is done.
    pub fn update(&mut self, done: usize, total: usize) {
        if self.bar.is_none() && self.start.elapsed() < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            // indicatif draws nothing where stderr is not a terminal.
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} [{elapsed} < {eta}]");
            ProgressBar::new(total as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_prefix(self.label)
                .with_elapsed(self.start.elapsed())
        });
        bar.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
