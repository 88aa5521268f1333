//! PyTorch, in a process of its own that answers one line for every line: `benches/peers/torch_sdpa.py`.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use deltallm::AttentionShape;
use serde::{Deserialize, Serialize};

use crate::subject::{Attention, Place};

const SCRIPT: &str = include_str!("../../peers/torch_sdpa.py");

/// After an answer, threads of the child may spin for some milliseconds before they sleep; the next to be timed waits so long.
const REST: Duration = Duration::from_millis(20);

/// The child.
pub struct Torch {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// What it said when it started.
    pub greeting: Greeting,
}

/// The first line of the child.
#[derive(Debug, Deserialize)]
pub struct Greeting {
    /// PyTorch's version.
    pub torch: String,
    /// Threads it uses.
    pub threads: usize,
}

/// The last `queries` of `keys` tokens attend to all before them and themselves.
#[derive(Serialize)]
struct Request {
    layer: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
}

impl Torch {
    /// Starts `python` with the script.
    ///
    /// # Errors
    /// When it does not start or has no PyTorch.
    pub fn start(python: &Path, threads: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &threads.to_string()]);
        let torch = Self::spawn(command).with_context(|| {
            format!(
                "--torch {}: expected a Python with PyTorch (python3 -m pip install torch numpy)",
                python.display()
            )
        })?;
        let got = torch.greeting.threads;
        anyhow::ensure!(got == threads, "--torch: expected {threads} threads, got {got}");
        Ok(torch)
    }

    fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let greeting = line(&mut stdout)?;
        Ok(Self { child, stdin, stdout, greeting })
    }

    fn ask(&mut self, request: &Request) -> anyhow::Result<f64> {
        let mut text = serde_json::to_string(request)?;
        text.push('\n');
        self.stdin.write_all(text.as_bytes())?;
        self.stdin.flush()?;
        let answer: Answer = line(&mut self.stdout)?;
        Ok(answer.seconds)
    }
}

fn line<T: for<'de> Deserialize<'de>>(stdout: &mut impl BufRead) -> anyhow::Result<T> {
    let mut text = String::new();
    let read = stdout.read_line(&mut text)?;
    anyhow::ensure!(read > 0, "the process has ended");
    serde_json::from_str(&text)
        .with_context(|| format!("expected an answer in JSON, got {:?}", text.trim_end()))
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It only waits for the next line.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `scaled_dot_product_attention` in float32 on random inputs of the same shapes: dense attention takes the same time
/// whatever the numbers are.
pub struct Sdpa<'a> {
    /// The process.
    pub torch: &'a mut Torch,
    /// Head counts.
    pub shape: AttentionShape,
}

impl Attention for Sdpa<'_> {
    fn attend(&mut self, place: Place, tokens: Range<usize>, _: &mut [f32]) -> anyhow::Result<f64> {
        let seconds = self.torch.ask(&Request {
            layer: place.layer,
            queries: tokens.len(),
            keys: tokens.end,
            heads: self.shape.heads(),
            kv_heads: self.shape.kv_heads(),
            head_dim: self.shape.head_dim(),
        })?;
        if self.torch.greeting.threads > 1 {
            std::thread::sleep(REST);
        }
        Ok(seconds)
    }

    /// Nothing is ever appended.
    fn rewind(&mut self, _: usize) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn fake(script: &str) -> anyhow::Result<Torch> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Torch::spawn(command)
    }

    #[test]
    fn one_answer_for_every_request() {
        let script = r#"echo '{"torch": "0", "threads": 1}'
            while read -r line; do case $line in *'"queries":3,"keys":5,'*) echo '{"seconds": 0.5}';; *) echo no;; esac; done"#;
        let mut torch = fake(script).unwrap();
        let shape = AttentionShape::new(4, 2, 8).unwrap();
        let mut sdpa = Sdpa { torch: &mut torch, shape };
        let place = Place { window: 0, layer: 1 };
        assert_eq!(sdpa.attend(place, 2..5, &mut []).unwrap(), 0.5);
        let error = sdpa.attend(place, 0..5, &mut []).unwrap_err().to_string();
        assert_eq!(error, "expected an answer in JSON, got \"no\"");
    }

    #[test]
    fn a_process_that_ends_is_an_error_and_not_a_hang() {
        assert_eq!(fake("exit 1").err().unwrap().to_string(), "the process has ended");
        assert!(Torch::start(Path::new("/no/such/python"), 1).is_err());
    }
}
