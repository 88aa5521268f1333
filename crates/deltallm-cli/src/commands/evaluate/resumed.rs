//! Examples in turn, with a log of those that are done.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::args::Args;
use crate::{
    LoadedModel, ModelProfile, Plan, ResumeLog, Resumed, Score, Setup, note, run_windows, sha256_hex,
};

/// Runs the examples that are wanted, those in the log of an earlier run excepted.
pub(super) fn run_all<R: Serialize + DeserializeOwned>(
    args: &Args,
    setup: &Setup,
    data_sha256: &str,
    plan: Plan,
    score: &mut Score<R>,
) -> anyhow::Result<Vec<R>> {
    let log = match &args.resume {
        Some(path) => Some(ResumeLog::open(path, &identity(args, setup, data_sha256)?)?),
        None => None,
    };
    let Resumed { results, from_log } = run_windows(plan, log, score)?;
    if let Some(path) = args.resume.as_ref().filter(|_| from_log > 0) {
        note(format_args!(
            "resumed      {from_log} of {} examples are from {}",
            plan.examples,
            path.display()
        ));
    }
    Ok(results)
}

/// All that an example's result depends on.
fn identity(args: &Args, setup: &Setup, data_sha256: &str) -> anyhow::Result<Value> {
    let config = setup.model.graph.config();
    let settings = setup.kernel.settings();
    let hash = |profile: &ModelProfile| anyhow::Ok(sha256_hex(&serde_json::to_vec(&profile.settings)?));
    let profile_sha256 = setup.kernel.profile().map(hash).transpose()?;
    let beginning_sha256 = || sha256_hex(setup.beginning.as_bytes());
    let shots = (args.shots > 0).then(|| json!({"count": args.shots, "sha256": beginning_sha256()}));
    Ok(json!({
        "model": {"name": setup.model.name, "fingerprint": config.fingerprint().0},
        "weights": format!("{:08x}", setup.model.graph.weights_checksum()),
        "linear": args.model.linear,
        "program": env!("CARGO_PKG_VERSION"),
        "tokenizer_sha256": tokenizer_sha256(setup.model)?,
        "task": args.task,
        "data_sha256": data_sha256,
        "kernel": setup.kernel.kind(),
        // Through text, like what it will be compared with.
        "settings": serde_json::from_str::<Value>(&serde_json::to_string(&settings)?)?,
        "profile_sha256": profile_sha256,
        "delimiter": setup.delimiter,
        "shots": shots,
        "context": setup.context,
        "decode": setup.decode,
        "compare": setup.dense.as_ref().map(|dense| dense.kind()),
    }))
}

/// Tells tokenizers apart by what they make of words, numbers, white space, code and other scripts.
fn tokenizer_sha256(model: &LoadedModel) -> anyhow::Result<String> {
    let sample = "It's 1234.5 %:\n\n  fn f(x: &str) -> Vec<u8> { x.into() }\t// ... Übergröße, œuvre, 東京 2026, Привет, عربي 🙂";
    let bytes: Vec<u8> = model.encode(sample)?.into_iter().flat_map(u32::to_le_bytes).collect();
    Ok(sha256_hex(&bytes))
}

/// As many examples as are wanted, so many at once.
pub(super) fn plan<T>(args: &Args, examples: &[T], window: usize) -> Plan {
    let limit = args.limit.map_or(examples.len(), |limit| limit as usize);
    Plan { examples: examples.len().min(limit), window, steps: 1 }
}
