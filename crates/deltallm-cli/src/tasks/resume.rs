//! A log of examples that are done, so that a long run can be stopped and go on.
//!
//! The file is JSON lines: first what the run is, then one line an example, appended as windows of examples are done.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Progress, input::read_bytes, write_whole};

/// The log of one run.
#[derive(Debug)]
pub struct ResumeLog<R> {
    path: PathBuf,
    file: File,
    done: BTreeMap<usize, R>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    evaluate_log: u32,
    run: Value,
}

/// Every other line.
#[derive(Serialize, Deserialize)]
struct Line<R> {
    /// Counted from 0.
    example: usize,
    result: R,
}

/// Changes when a line's meaning does.
const VERSION: u32 = 3;

impl<R: Serialize + DeserializeOwned> ResumeLog<R> {
    /// Opens the log of the run that `run` describes (a JSON object), or begins one. A last line that is torn, because
    /// the program was stopped while writing it, is dropped.
    ///
    /// # Errors
    /// For a file that is no log, or the log of another run: the message names the first setting that differs.
    pub fn open(path: &Path, run: &Value) -> anyhow::Result<Self> {
        let name = format!("--resume {}", path.display());
        let text = match std::fs::metadata(path) {
            Ok(file) if file.is_file() => read_bytes(&name, path)?,
            Ok(_) => bail!("{name}: expected a file or nothing, got a folder or a device; name another file"),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).context(name),
        };
        if text.is_empty() {
            create(path, run).with_context(|| format!("{name}: cannot write"))?;
        }
        let mut done = BTreeMap::new();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|byte| *byte == b'\n').enumerate();
        if !text.is_empty() {
            let (_, first) = lines.next().unwrap_or_default();
            let header: Option<Header> = serde_json::from_slice(first).ok();
            let Some(header) = header.filter(|_| whole > 0) else {
                bail!(
                    "{name}: expected the log of an earlier run or a file that does not exist, got something else"
                );
            };
            ensure!(
                header.evaluate_log == VERSION,
                "{name}: expected a log of version {VERSION}, got {}, of another version of this program; name another file",
                header.evaluate_log
            );
            if let Some((setting, log, now)) = first_difference("", &header.run, run) {
                bail!("{name}: the log's run has {setting} {log}, this one {now}; name another file");
            }
        }
        for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let line: Line<R> = serde_json::from_slice(line)
                .with_context(|| format!("{name}, line {}: expected an example's result", index + 1))?;
            done.insert(line.example, line.result);
        }
        let file = OpenOptions::new().append(true).open(path).with_context(|| name.clone())?;
        if whole < text.len() {
            file.set_len(whole as u64).with_context(|| name)?;
        }
        Ok(Self { path: path.to_owned(), file, done })
    }

    /// The results of these examples if all of them are there.
    fn take(&mut self, examples: Range<usize>) -> Option<Vec<R>> {
        let there = self.done.range(examples.clone()).count() == examples.len();
        there.then(|| examples.filter_map(|example| self.done.remove(&example)).collect())
    }

    fn append(&mut self, lines: &str) -> anyhow::Result<()> {
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.flush());
        written.with_context(|| format!("--resume {}: cannot write", self.path.display()))
    }
}

/// A log has its first line or is not there.
fn create(path: &Path, run: &Value) -> anyhow::Result<()> {
    let header = serde_json::to_string(&Header { evaluate_log: VERSION, run: run.clone() })?;
    write_whole(path, format!("{header}\n").as_bytes())
}

/// The name of the first value that differs, and both values.
fn first_difference(name: &str, a: &Value, b: &Value) -> Option<(String, Value, Value)> {
    let (Value::Object(fields), Value::Object(others)) = (a, b) else {
        return (a != b).then(|| (name.to_owned(), a.clone(), b.clone()));
    };
    let names = fields.keys().chain(others.keys().filter(|name| !fields.contains_key(*name)));
    names.into_iter().find_map(|field| {
        let inner = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
        let value = |fields: &serde_json::Map<String, Value>| fields.get(field).cloned().unwrap_or_default();
        first_difference(&inner, &value(fields), &value(others))
    })
}

/// The results of all examples, in order.
#[derive(Debug)]
pub struct Resumed<R> {
    /// One per example.
    pub results: Vec<R>,
    /// How many came from the log.
    pub from_log: usize,
}

/// How many examples are run, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// All of them.
    pub examples: usize,
    /// How many together (at least 1); they are logged at once.
    pub window: usize,
    /// Steps of progress in an example.
    pub steps: usize,
}

/// Scores a range of examples, and tells how many steps of it are done.
pub type Score<'s, R> = dyn FnMut(Range<usize>, &mut dyn FnMut(usize)) -> anyhow::Result<Vec<R>> + 's;

/// Runs examples window by window. A window that is in the log as a whole is not run again; one that is there in part is, so
/// that batches are what they would have been and the results the same to the last bit.
///
/// # Errors
/// Those of `score`, and when the log cannot be written.
pub fn run_windows<R: Serialize + DeserializeOwned>(
    Plan { examples, window, steps }: Plan,
    mut log: Option<ResumeLog<R>>,
    score: &mut Score<R>,
) -> anyhow::Result<Resumed<R>> {
    let mut run = Resumed { results: Vec::with_capacity(examples), from_log: 0 };
    let mut progress = Progress::new("scoring");
    for start in (0..examples).step_by(window.max(1)) {
        let range = start..examples.min(start + window.max(1));
        if let Some(results) = log.as_mut().and_then(|log| log.take(range.clone())) {
            run.from_log += results.len();
            run.results.extend(results);
            continue;
        }
        let results = score(range.clone(), &mut |done| {
            progress.update(start * steps + done, examples * steps);
        })?;
        ensure!(results.len() == range.len(), "expected {} results, got {}", range.len(), results.len());
        let mut lines = String::new();
        for (example, result) in range.zip(results) {
            let line = serde_json::to_string(&Line { example, result })?;
            // Read back even without a log: decimal digits may cost a last bit, and must do so in every run.
            run.results.push(serde_json::from_str::<Line<R>>(&line)?.result);
            lines.push_str(&line);
            lines.push('\n');
        }
        if let Some(log) = &mut log {
            log.append(&lines)?;
        }
        progress.update(run.results.len() * steps, examples * steps);
    }
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("deltallm-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        path
    }

    /// Runs ten examples in windows of four and returns the results, how many were computed, and how many were there.
    fn run(path: &Path, identity: &Value) -> (Vec<f64>, usize, usize) {
        let mut computed = 0;
        let log = ResumeLog::open(path, identity).unwrap();
        let run = run_windows(Plan { examples: 10, window: 4, steps: 1 }, Some(log), &mut |range, _| {
            computed += range.len();
            Ok(range.map(|example| (example as f64).sqrt() / 3.0).collect())
        });
        let run = run.unwrap();
        (run.results, computed, run.from_log)
    }

    #[test]
    fn what_is_in_the_log_is_not_done_again() {
        let (path, identity) = (path("again"), json!({"theta": 0.5}));
        let (first, computed, from_log) = run(&path, &identity);
        assert_eq!((computed, from_log), (10, 0));
        assert_eq!(run(&path, &identity), (first, 0, 10));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_torn_line_is_dropped_and_its_window_done_again() {
        let (path, identity) = (path("torn"), json!({"theta": 0.5}));
        let (first, ..) = run(&path, &identity);
        let text = std::fs::read_to_string(&path).unwrap();
        // Six whole lines (the header and five examples) and a bit of the next.
        let cut: usize = text.split_inclusive('\n').take(6).map(str::len).sum();
        std::fs::write(&path, &text[..cut + 9]).unwrap();
        assert_eq!(run(&path, &identity), (first.clone(), 6, 4));
        // The log is whole again, with one example in it twice.
        assert_eq!(run(&path, &identity), (first, 0, 10));
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 12);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn another_run_s_log_is_refused_and_left_alone() {
        let (path, identity) = (path("other"), json!({"settings": {"theta": 0.5}, "task": "choices"}));
        run(&path, &identity);
        let before = std::fs::read(&path).unwrap();
        for (other, parts) in [
            (json!({"settings": {"theta": 0.6}, "task": "choices"}), ["settings.theta 0.5", "this one 0.6"]),
            (
                json!({"settings": {"theta": 0.5}, "task": "squad"}),
                ["task \"choices\"", "this one \"squad\""],
            ),
            (
                json!({"settings": {"theta": 0.5, "sinks": 4}, "task": "choices"}),
                ["settings.sinks null", "4"],
            ),
        ] {
            let error = ResumeLog::<f64>::open(&path, &other).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_log_is_refused_and_left_alone() {
        let path = path("text");
        for text in ["Once upon a time", "{\"query\": \"a\"}\n", "\n"] {
            std::fs::write(&path, text).unwrap();
            let error = ResumeLog::<f64>::open(&path, &json!({})).unwrap_err().to_string();
            assert!(error.contains("expected the log of an earlier run"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_broken_line_inside_is_named() {
        let (path, identity) = (path("broken"), json!({}));
        run(&path, &identity);
        let text = std::fs::read_to_string(&path).unwrap().replacen("{\"example\":1", "{\"exam", 1);
        std::fs::write(&path, text).unwrap();
        let error = ResumeLog::<f64>::open(&path, &identity).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}
