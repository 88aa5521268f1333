//! The tasks of `evaluate`, on tiny files and the embedded model.

mod common;

use std::time::{Duration, Instant};

use common::{assert_refused, command, file, json, run};
use deltallm::models::{SamplerConfig, Session};
use deltallm::{KernelKind, KernelSpec, KvStore};
use deltallm_cli::{
    ANSWER_TOKENS, Answer, ChoiceExample, KernelArgs, LikelihoodExample, LoadedModel, Pair, Scorer, Setup,
    Wanted, answer_all, generate, score_examples,
};
use serde_json::{Value, json};

const CHOICES: &str = r#"{"query": "Once upon a time there was a", "choices": ["king", "parliament", "queen who had three"], "gold": 0}
{"query": "The wolf ate the little", "choices": ["girl", "telegraph"], "gold": 0}
{"query": "The king said to his", "choices": ["son", "of"], "gold": 1}
"#;
const SCHEMA: &str = r#"{"context_options": ["The queen was old, so the queen", "The queen was old, so the frog"], "continuation": "went home to the castle.", "gold": 0}
{"context_options": ["The princess", "The"], "continuation": "was very beautiful.", "gold": 1}
"#;
const LAST_WORD: &str = r#"{"context": "Once upon a", "continuation": "time"}
{"context": "The king had a daughter, and the king's daughter was called", "continuation": "Zanzibar"}
"#;
const GSM8K: &str = r#"{"context": "How many are two and two?", "chain_of_thought": "Two and two are 4.", "answer": "4"}
"#;
const SQUAD: &str = r#"{"version": "v2.0", "data": [{"title": "The fox", "paragraphs": [{"context": "The fox lived in the wood.", "qas": [
{"question": "Where did the fox live?", "id": "1", "answers": [{"text": "in the wood", "answer_start": 14}], "is_impossible": false},
{"question": "Who was king?", "id": "2", "answers": [], "is_impossible": true}]}]}]}
"#;

fn evaluate(task: &str, data: &str, more: &[&str]) -> Value {
    json(&run("evaluate", &[&["--task", task, "--data", data, "--json"], more].concat()))
}

fn tasks() -> [(&'static str, String, &'static [&'static str]); 5] {
    [
        ("choices", file("choices.jsonl", CHOICES.as_bytes()), &["accuracy", "accuracy_norm"]),
        ("schema", file("schema.jsonl", SCHEMA.as_bytes()), &["accuracy", "accuracy_norm"]),
        ("last-word", file("last-word.jsonl", LAST_WORD.as_bytes()), &["accuracy", "log_likelihood"]),
        ("last-word", file("gsm8k.jsonl", GSM8K.as_bytes()), &["accuracy", "log_likelihood"]),
        ("squad", file("squad.json", SQUAD.as_bytes()), &["f1", "exact_match"]),
    ]
}

#[test]
fn every_task_reports_the_promised_fields() {
    for (task, data, metrics) in tasks() {
        let report = evaluate(task, &data, &["--compare", "dense", "--window", "2", "--theta", "1"]);
        assert_eq!(report["task"], task);
        for metric in metrics {
            assert!(report[metric].is_f64() && report["dense"][metric].is_f64(), "{metric} in {report}");
            assert!(report[format!("{metric}_difference")].is_f64(), "{metric} in {report}");
            assert!(report.get(format!("{metric}_difference_standard_error")).is_some(), "{report}");
        }
        for field in ["tokens", "mean_tokens", "longest_tokens", "kl"] {
            assert!(report[field].as_f64().is_some_and(|x| x > 0.0), "{field} in {report}");
        }
        for field in ["standard_error", "truncated", "unfinished", "flips", "top1_agreement", "sparsity"] {
            assert!(report.get(field).is_some(), "{field} in {report}");
        }
        assert_eq!(report["truncated"], 0);
    }
}

#[test]
fn a_fairy_tale_model_knows_how_fairy_tales_begin() {
    let [choices, _, last_word, ..] = tasks();
    let report = evaluate(choices.0, &choices.1, &["--kernel", "dense", "--limit", "2"]);
    assert_eq!((&report["examples"], &report["accuracy"]), (&json!(2), &json!(1.0)), "{report}");
    // The third one's gold is the wrong one.
    let report = evaluate(choices.0, &choices.1, &["--kernel", "dense"]);
    assert!((report["accuracy"].as_f64().unwrap() - 2.0 / 3.0).abs() < 1e-12, "{report}");
    let report = evaluate(last_word.0, &last_word.1, &["--kernel", "dense"]);
    assert_eq!((&report["accuracy"], &report["records"]), (&json!(0.5), &json!("last-word")), "{report}");
}

#[test]
fn records_of_gsm8k_are_named() {
    let report = evaluate("last-word", &file("gsm8k-named.jsonl", GSM8K.as_bytes()), &[]);
    assert_eq!(report["records"], "gsm8k");
}

#[test]
fn long_contexts_are_cut_and_counted() {
    let record = json!({"query": "the king and ".repeat(100), "choices": ["the queen", "so on"], "gold": 0});
    let data = file("long.jsonl", format!("{record}\n{CHOICES}").as_bytes());
    let report = evaluate("choices", &data, &["--context", "40"]);
    assert_eq!((&report["truncated"], &report["longest_tokens"]), (&json!(2), &json!(41)), "{report}");
    let squad = SQUAD.replace("The fox lived", &format!("{}. The fox lived", "the fox ".repeat(60)));
    let report = evaluate("squad", &file("long-squad.json", squad.as_bytes()), &["--context", "100"]);
    assert_eq!(report["truncated"], 2, "{report}");
    let args = ["--task", "squad", "--data", &data, "--context", "64"];
    assert_refused("evaluate", &args, &["--task squad expects"]);
    let args = ["--task", "squad", "--data", &file("squad-room.json", SQUAD.as_bytes()), "--context", "64"];
    assert_refused("evaluate", &args, &["--context", "65 to 1024", "64"]);
}

fn setup<'m>(model: &'m LoadedModel, options: &[&str]) -> Setup<'m> {
    let kernel = KernelArgs::parse(options.iter().copied()).expect("settings");
    let kernel = kernel.resolve(&model.graph).expect("settings that fit");
    let dense = Some(kernel.dense());
    Setup {
        model,
        kernel,
        dense,
        beginning: String::new(),
        delimiter: " ".into(),
        decode: false,
        context: 1024,
    }
}

fn scorer<'s>(setup: &'s Setup<'s>) -> Scorer<'s> {
    Scorer::new(setup).expect("a scorer")
}

#[test]
fn scores_in_a_batch_equal_scores_alone() {
    let model = LoadedModel::open(None).expect("the embedded model");
    for options in
        [&["--kernel", "dense"][..], &["--window", "block:0.1"], &["--window", "4", "--theta", "1"]]
    {
        let setup = setup(&model, options);
        let examples: Vec<ChoiceExample> = (0..12)
            .map(|i| {
                let context = "The king had a daughter. ".repeat(1 + i % 5);
                let pair =
                    |continuation: &str| Pair { context: context.clone(), continuation: continuation.into() };
                ChoiceExample { options: vec![pair("She"), pair("Once"), pair("She was beautiful")], gold: 0 }
            })
            .collect();
        let together = score_examples(&mut scorer(&setup), 0, &examples, &mut |_| {}).expect("scores");
        for (index, (example, batched)) in examples.iter().zip(&together).enumerate() {
            let alone =
                score_examples(&mut scorer(&setup), index, std::slice::from_ref(example), &mut |_| {})
                    .expect("scores");
            // One request at a time, so that none shares a prompt with another.
            for (option, pair) in example.pairs().iter().enumerate() {
                let single = ChoiceExample { options: vec![pair.clone()], gold: 0 };
                let single =
                    score_examples(&mut scorer(&setup), index, &[single], &mut |_| {}).expect("scores");
                let expected = single[0].as_ref().expect("a score").run.log_likelihoods[0];
                for result in [batched, &alone[0]] {
                    let got = result.as_ref().expect("a score").run.log_likelihoods[option];
                    assert!((got - expected).abs() < 1e-4, "{options:?}: {got} instead of {expected}");
                }
            }
            let [batched, alone] = [batched, &alone[0]].map(|result| result.as_ref().expect("a score"));
            assert_eq!(batched.sparsity.pairs, alone.sparsity.pairs);
            assert_eq!(batched.lengths, alone.lengths);
        }
    }
}

#[test]
fn prefill_only_changes_answers_but_not_likelihoods() {
    let model = LoadedModel::open(None).expect("the embedded model");
    let example = ChoiceExample {
        options: vec![Pair {
            context: "Once upon a time there was a king".repeat(4),
            continuation: "who".into(),
        }],
        gold: 0,
    };
    let scores = ["both", "prefill"].map(|phases| {
        let setup = setup(&model, &["--theta", "1", "--window", "2", "--phases", phases]);
        let scores = score_examples(&mut scorer(&setup), 0, std::slice::from_ref(&example), &mut |_| {});
        scores.expect("scores").remove(0).expect("a score")
    });
    assert_eq!(scores[0].run, scores[1].run);
    assert_eq!(scores[0].sparsity, scores[1].sparsity);
    assert!(scores[0].comparison.expect("compared").kl() > 0.0);

    // Where text is generated, only the prompt's pairs go through deltas.
    let prompts = [model.encode("Once upon a time there was a king who had").expect("tokens")];
    let [both, prefill] = ["both", "prefill"].map(|phases| {
        let setup = setup(&model, &["--theta", "1", "--window", "2", "--phases", phases]);
        answer_all(&model, &setup.kernel, None, &prompts, &mut |_| {}).expect("an answer").remove(0)
    });
    assert_eq!(both.first_logits, prefill.first_logits);
    assert!(both.tokens > 10 && prefill.tokens > 10, "too short to tell: {both:?}");
    let far = |answer: &Answer| answer.sparsity.pairs - answer.sparsity.exact_pairs;
    // Of n tokens' n (n + 1) / 2 pairs, 2 a token are in the window and up to 4 more are sinks.
    let (tokens, heads) =
        (prompts[0].len() as u64, (model.graph.config().heads * model.graph.config().layers) as u64);
    let exact: u64 = (1..=tokens).map(|position| position.min(6)).sum();
    assert_eq!(far(&prefill), heads * (tokens * (tokens + 1) / 2 - exact));
    assert!(far(&both) > far(&prefill));
}

#[test]
fn answers_in_a_batch_are_what_greedy_generation_writes() {
    let model = LoadedModel::open(None).expect("the embedded model");
    let texts = [
        "Once upon a time there was",
        "The king said",
        "One day the fox went to the wolf, and",
        "The end.\n",
    ];
    let prompts: Vec<_> = texts.iter().map(|text| model.encode(text).expect("tokens")).collect();
    for options in
        [&["--kernel", "dense"][..], &["--window", "4", "--theta", "0.8"], &["--phases", "prefill"]]
    {
        let setup = setup(&model, options);
        let answers = answer_all(&model, &setup.kernel, None, &prompts, &mut |_| {}).expect("answers");
        for (prompt, answer) in prompts.iter().zip(&answers) {
            let greedy = SamplerConfig::default();
            let session =
                Session::new(model.graph.clone(), |layer| setup.kernel.make(layer)).expect("a session");
            let wanted = Wanted {
                prompt,
                continues_text: true,
                sampling: greedy,
                max_tokens: ANSWER_TOKENS,
                lookup: None,
                prompts: None,
            };
            let alone = generate(&model, session, wanted, &mut |_| Ok(()));
            let alone = alone.expect("a text").text;
            assert_eq!(answer.text, alone.split('\n').next().expect("a first line"));
            assert_eq!(answer.unfinished, answer.tokens == ANSWER_TOKENS && !alone.contains('\n'));
        }
        assert!(answers.iter().any(|answer| answer.tokens > 10));
    }
}

/// Six good examples and, in the middle, three that have nothing to score: one token spans the joint, a choice shares that, and one is
/// longer than the context.
fn with_joints() -> String {
    let good = json!({"query": "Once upon a", "choices": [" time", " horse"], "gold": 0});
    let joint = json!({"query": "Once upon a ti", "choices": ["me", "ny"], "gold": 0});
    let half = json!({"query": "Once upon a ti", "choices": ["me there was", "me"], "gold": 0});
    let long = json!({"query": "Once", "choices": ["king ".repeat(60), "upon"], "gold": 0});
    [&good, &good, &good, &joint, &half, &long, &good, &good, &good]
        .map(|record| format!("{record}\n"))
        .concat()
}

#[test]
fn an_example_that_cannot_be_scored_is_counted_and_the_run_goes_on() {
    let data = file("joints.jsonl", with_joints().as_bytes());
    let options = ["--kernel", "dense", "--delimiter", "", "--context", "40"];
    let report = evaluate("choices", &data, &options);
    assert_eq!((&report["examples"], &report["skipped_examples"]), (&json!(6), &json!(3)), "{report}");
    assert_eq!(report["skipped_reasons"], json!({"no_tokens": 2, "too_long": 1}));
    assert_eq!(report["accuracy"], 1.0);
    let args = [&["--task", "choices", "--data", &data][..], &options].concat();
    let said = String::from_utf8(run("evaluate", &args).stderr).expect("UTF-8");
    assert!(
        said.contains("3 examples cannot be scored") && said.contains("the first is example 4"),
        "{said}"
    );
    assert!(said.contains("2: the continuation has no token of its own"), "{said}");
    // The log knows them too.
    let log = file("joints.log", b"");
    std::fs::remove_file(&log).expect("just written");
    let logged = [&options[..], &["--resume", &log]].concat();
    for _ in 0..2 {
        assert_eq!(numbers(evaluate("choices", &data, &logged)), numbers(report.clone()));
    }
    assert_eq!(std::fs::read_to_string(&log).expect("a log").lines().count(), 1 + 9);
    let none = file("only-joints.jsonl", with_joints().lines().nth(3).expect("the joint").as_bytes());
    let args = ["--task", "choices", "--data", &none, "--delimiter", ""];
    assert_refused("evaluate", &args, &["only-joints.jsonl", "got 1 that cannot", "no token of its own"]);
}

/// The embedded model in a file whose tokenizer puts the end of a text behind every text.
fn ends_texts() -> String {
    let model = include_bytes!("../assets/fairy-tales.gguf");
    file("ends-texts.gguf", &with_flag(model, "tokenizer.ggml.add_eos_token"))
}

/// A GGUF file with one more flag in its metadata, set.
fn with_flag(gguf: &[u8], name: &str) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(gguf[at..at + 8].try_into().expect("eight bytes"));
    let mut entry = u64::try_from(name.len()).expect("a length").to_le_bytes().to_vec();
    entry.extend_from_slice(name.as_bytes());
    // Type 7 is a bool. The tensors are aligned to 32 bytes, so another key takes up the rest.
    entry.extend_from_slice(&[7, 0, 0, 0, 1]);
    let rest = 32 - entry.len() % 32;
    let filler = if rest < 14 { rest + 32 } else { rest };
    entry.extend_from_slice(&u64::try_from(filler - 13).expect("a length").to_le_bytes());
    entry.extend(std::iter::repeat_n(b'x', filler - 13));
    entry.extend_from_slice(&[7, 0, 0, 0, 1]);
    let mut file = gguf[..16].to_vec();
    file.extend_from_slice(&(number(16) + 2).to_le_bytes());
    file.extend_from_slice(&entry);
    file.extend_from_slice(&gguf[24..]);
    file
}

#[test]
fn a_tokenizer_that_ends_texts_does_not_end_what_is_continued() {
    let model = ends_texts();
    let loaded = LoadedModel::open(Some(model.as_ref())).expect("a model");
    let ended = loaded.tokenizer.encode("Once", true).expect("tokens");
    assert!(loaded.tokenizer.eos_ids().contains(ended.last().expect("a token")), "the flag is read");
    for (task, data, metrics) in tasks() {
        let [with, without] = [&["--model", &model][..], &[]]
            .map(|model| evaluate(task, &data, &[model, &["--kernel", "dense"]].concat()));
        for metric in metrics {
            assert_eq!(with[metric], without[metric], "{task}: {metric}");
        }
        assert_eq!(with["tokens"], without["tokens"], "{task}");
    }
    let prompt = ["--prompt", "Once upon a time", "--max-tokens", "8", "--temperature", "0", "--json"];
    let [with, without] =
        [&["--model", &model][..], &[]].map(|model| json(&run("generate", &[&prompt[..], model].concat())));
    assert_eq!((&with["text"], &with["prompt_tokens"]), (&without["text"], &without["prompt_tokens"]));
}

#[test]
fn generated_answers_are_compared_token_by_token_on_the_dense_text() {
    let model = LoadedModel::open(None).expect("the embedded model");
    let prompts: Vec<_> = ["The king said", "One day the fox went to the wolf, and"]
        .iter()
        .map(|text| model.encode(text).expect("tokens"))
        .collect();
    // Coarse thresholds: both texts part from the dense ones, though their first tokens are the same.
    let setup = setup(&model, &["--theta", "2", "--window", "2", "--skip-margin", "3"]);
    let dense = setup.dense.as_ref().expect("dense attention");
    let all =
        |kernel, follower| answer_all(&model, kernel, follower, &prompts, &mut |_| {}).expect("answers");
    let (own, exact) = (all(&setup.kernel, None), all(dense, Some(&setup.kernel)));
    let mut flips = 0;
    for (own, exact) in own.iter().zip(&exact) {
        let compared = exact.follower.expect("compared");
        flips += compared.flips();
        assert!(compared.kl() > 0.0 && compared.flips() < exact.tokens);
        // A text that is another one parts at a token that the kernel would have chosen otherwise.
        assert!(own.text == exact.text || compared.flips() > 0, "{own:?} {exact:?}");
    }
    assert!(flips > 0 && own[0].text != exact[0].text, "nothing parts: {own:?}");
    // Exact attention that follows itself agrees everywhere.
    for exact in all(dense, Some(dense)) {
        let compared = exact.follower.expect("compared");
        assert!(compared.flips() == 0 && compared.kl().abs() < 1e-9, "{compared:?}");
    }
}

#[test]
fn a_share_of_skipped_values_says_of_which_pairs() {
    let [choices, ..] = tasks();
    let settings = ["--window", "2", "--theta", "1", "--skip-margin", "3"];
    let prompts = evaluate(choices.0, &choices.1, &settings);
    assert_eq!(
        (&prompts["values_skipped"], &prompts["values_skipped_decode"]),
        (&prompts["values_skipped_prefill"], &Value::Null)
    );
    let prompt = "Once upon a time there was a king who had three sons. ".repeat(4);
    let args = ["--prompt", &prompt, "--max-tokens", "60", "--temperature", "0", "--json", "--verbose"];
    let output = run("generate", &[&args[..], &settings].concat());
    let both = json(&output);
    let share = |name: &str| both[name].as_f64().expect("a share");
    let [all, prompt, decode] =
        ["values_skipped", "values_skipped_prefill", "values_skipped_decode"].map(share);
    assert!(prompt.min(decode) < all && all < prompt.max(decode), "{both}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("in decoding"));
}

#[test]
fn a_run_that_approximates_nothing_says_so_once() {
    let data = file("nothing.jsonl", CHOICES.as_bytes());
    let said = |more: &[&str]| {
        let args = [&["--task", "choices", "--data", &data][..], more].concat();
        String::from_utf8(run("evaluate", &args).stderr)
            .expect("UTF-8")
            .matches("nothing was approximated")
            .count()
    };
    assert_eq!(said(&["--exact-prompt", "1024"]), 1);
    assert_eq!(said(&["--window", "2", "--sinks", "0", "--theta", "0", "--skip-margin", "off"]), 1);
    assert_eq!(said(&["--window", "2", "--sinks", "0", "--theta", "1"]), 0);
    assert_eq!(said(&["--kernel", "dense"]), 0);
}

/// A report without what no two runs share.
fn numbers(mut report: Value) -> Value {
    report.as_object_mut().expect("an object").remove("seconds");
    report
}

/// More examples than are scored at once.
fn many() -> String {
    (0..100)
        .map(|i| {
            let query = format!("In the year {i} there was a king who had {} sons and a", i % 7);
            format!(
                "{}\n",
                json!({"query": query, "choices": ["daughter", "beautiful castle"], "gold": i % 2})
            )
        })
        .collect()
}

#[test]
fn a_killed_run_goes_on_and_ends_with_the_same_numbers() {
    let data = file("many.jsonl", many().as_bytes());
    let log = file("killed.log", b"");
    std::fs::remove_file(&log).expect("just written");
    let options = ["--compare", "dense", "--window", "2"];
    let whole = numbers(evaluate("choices", &data, &options));

    let args = [&["--task", "choices", "--data", &data, "--resume", &log][..], &options].concat();
    let mut child = command("evaluate", &args).spawn().expect("the program starts");
    let lines = || std::fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    let start = Instant::now();
    while lines() < 20 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("a child can be killed");
    child.wait().expect("the child ends");
    let there = lines();
    assert!(there >= 20, "nothing was logged");

    let output = run("evaluate", &[&args[..], &["--json"]].concat());
    assert_eq!(numbers(json(&output)), whole);
    assert!(String::from_utf8_lossy(&output.stderr).contains("resumed"), "{there} lines were there");
}

#[test]
fn a_torn_log_of_each_task_is_taken_up() {
    let text =
        file("resumed.txt", "Once upon a time there was a king who had three sons. ".repeat(30).as_bytes());
    let perplexity = [("perplexity", text, &["perplexity"][..])];
    for (task, data, _) in tasks().into_iter().chain(perplexity) {
        let log = format!("{data}.log");
        let _ = std::fs::remove_file(&log);
        let options = ["--context", "100", "--compare", "dense"];
        let whole = numbers(evaluate(task, &data, &options));
        let logged = [&options[..], &["--resume", &log]].concat();
        assert_eq!(numbers(evaluate(task, &data, &logged)), whole, "{task}");
        let bytes = std::fs::read(&log).expect("a log");
        std::fs::write(&log, &bytes[..bytes.len() - 20]).expect("writable");
        assert_eq!(numbers(evaluate(task, &data, &logged)), whole, "{task}");
        assert_eq!(numbers(evaluate(task, &data, &logged)), whole, "{task}");
    }
}

/// A file of choices other than [`CHOICES`].
fn other_records() -> String {
    file("other-records.jsonl", CHOICES.replace("king", "queen").as_bytes())
}

#[test]
fn the_log_of_another_run_is_refused() {
    let data = file("other-run.jsonl", CHOICES.as_bytes());
    let log = file("other-run.log", b"");
    std::fs::remove_file(&log).expect("just written");
    evaluate("choices", &data, &["--resume", &log]);
    let base = ["--task", "choices", "--data", &data, "--resume", &log];
    for (more, setting) in [
        (["--theta", "0.9"], "profile_sha256"),
        (["--sinks", "3"], "settings.sinks"),
        (["--kernel", "dense"], "the log's run has kernel"),
        (["--delimiter", ""], "delimiter"),
        (["--context", "500"], "context"),
        (["--compare", "dense"], "compare"),
        (["--phases", "prefill"], "settings.phases"),
        (["--exact-prompt", "99"], "settings.exact_prompt"),
    ] {
        let parts = ["error: --resume", setting, "name another file"];
        assert_refused("evaluate", &[&base[..], &more].concat(), &parts);
    }
    // A log knows its solved examples.
    let shots = format!("{log}.shots");
    let _ = std::fs::remove_file(&shots);
    let base_of_shots = ["--task", "choices", "--data", &data, "--resume", &shots];
    let one = evaluate("choices", &data, &["--resume", &shots, "--shots", "1"]);
    assert_eq!(numbers(evaluate("choices", &data, &["--resume", &shots, "--shots", "1"])), numbers(one));
    for (base, more, setting) in [
        (&base, &["--shots", "1"][..], "has shots null"),
        (&base_of_shots, &[], "this one null"),
        (&base_of_shots, &["--shots", "2"], "shots.count 1, this one 2"),
        (&base_of_shots, &["--shots", "1", "--shots-from", &other_records()], "shots.sha256"),
    ] {
        assert_refused("evaluate", &[&base[..], more].concat(), &["error: --resume", setting]);
    }
    let other = file("other-data.jsonl", format!("{CHOICES}\n").as_bytes());
    let args = ["--task", "choices", "--data", &other, "--resume", &log];
    assert_refused("evaluate", &args, &["data_sha256"]);
    let args = ["--task", "choices", "--data", &data, "--resume", &data];
    assert_refused("evaluate", &args, &["expected the log of an earlier run"]);
    assert_eq!(std::fs::read_to_string(&data).expect("still there"), CHOICES);
}

#[test]
fn the_log_of_other_weights_of_the_same_size_is_refused() {
    let data = file("other-weights.jsonl", CHOICES.as_bytes());
    let mut weights = include_bytes!("../assets/fairy-tales.gguf").to_vec();
    let model = file("weights.gguf", &weights);
    let log = format!("{model}.log");
    let _ = std::fs::remove_file(&log);
    let args = ["--task", "choices", "--data", &data, "--model", &model, "--resume", &log];
    assert!(run("evaluate", &args).status.success());
    // Of the last layers.
    let last = weights.len() * 9 / 10;
    weights[last..last + 4096].iter_mut().for_each(|byte| *byte ^= 1);
    file("weights.gguf", &weights);
    assert_refused("evaluate", &args, &["the log's run has weights", "name another file"]);
}

/// A record with this number and this word.
type MakeRecord<'a> = &'a dyn Fn(usize, &str) -> Value;

/// Five records of every kind, more than a block of tokens each, and the same with the last two of them written out before the others.
fn few_shot_tasks() -> [(&'static str, String, String); 4] {
    let long =
        |i: usize| format!("The king had {i} sons. {}", "The wolf ate the little girl. ".repeat(8 + i));
    let choices = |i, before: &str| {
        let query = format!("{before}{}They were", long(i));
        json!({"query": query, "choices": ["happy", "a parliament", "in the wood"], "gold": i % 3})
    };
    let schema = |i, before: &str| {
        let contexts = ["The queen", "The frog"].map(|who| format!("{before}{}{who}", long(i)));
        json!({"context_options": contexts, "continuation": "went home.", "gold": i % 2})
    };
    let last_word = |i, before: &str| json!({"context": format!("{before}{}Once upon a", long(i)), "continuation": "time"});
    let gsm8k = |i, before: &str| {
        let question = format!("{before}{}How many?", long(i));
        json!({"context": question, "chain_of_thought": "Two and two are 4.", "answer": format!("{i}")})
    };
    let solved = |text: &dyn Fn(usize) -> String| [3, 4].map(|i| text(i) + "\n\n").concat();
    let right = ["happy", "a parliament", "in the wood"];
    let who = ["queen", "frog"];
    let before = [
        solved(&|i| format!("{}They were {}", long(i), right[i % 3])),
        solved(&|i| format!("{}The {} went home.", long(i), who[i % 2])),
        solved(&|i| format!("{}Once upon a time", long(i))),
        // The prompt of a record begins with `Question: `, and so does the first example.
        solved(&|i| format!("Question: {}How many?\nAnswer: Two and two are 4.\n#### {i}", long(i)))
            .trim_start_matches("Question: ")
            .to_owned()
            + "Question: ",
    ];
    let records: [(&str, &str, MakeRecord); 4] = [
        ("choices", "choices", &choices),
        ("schema", "schema", &schema),
        ("last-word", "last-word", &last_word),
        ("last-word", "gsm8k", &gsm8k),
    ];
    let mut before = before.iter();
    records.map(|(task, name, record)| {
        let before = before.next().expect("one of each");
        let lines = |range: std::ops::Range<usize>, before: &str| {
            range.map(|i| format!("{}\n", record(i, before))).collect::<String>()
        };
        let data = file(&format!("few-shot-{name}.jsonl"), lines(0..5, "").as_bytes());
        let written = file(&format!("few-shot-{name}-written.jsonl"), lines(0..3, before).as_bytes());
        (task, data, written)
    })
}

#[test]
fn shots_are_the_last_records_solved_in_front_of_every_question() {
    let options = ["--window", "16", "--theta", "1", "--compare", "dense"];
    for (task, data, written) in few_shot_tasks() {
        let few = evaluate(task, &data, &[&options[..], &["--shots", "2"]].concat());
        let expected = evaluate(task, &written, &options);
        assert_eq!((&few["shots"], &few["examples"], &expected["shots"]), (&json!(2), &json!(3), &json!(0)));
        // Read behind a beginning here and whole there, and in floats the same but for rounding.
        assert_equal_but_for_rounding(task, &few, &expected);
        assert!(few["mean_tokens"].as_f64() > Some(200.0), "{few}");
        // What is left out does not count.
        let limited = evaluate(task, &data, &["--shots", "2", "--limit", "4", "--kernel", "dense"]);
        assert_eq!(limited["examples"], 3);
        assert!(evaluate(task, &data, &["--kernel", "dense"])["examples"] == 5);
    }
}

/// Two reports: counts are equal, numbers within 1e-4.
fn assert_equal_but_for_rounding(name: &str, a: &Value, b: &Value) {
    for (field, a) in a.as_object().expect("an object") {
        let b = &b[field];
        match (a, b) {
            _ if ["seconds", "shots"].contains(&&**field) => {}
            (Value::Object(_), _) => assert_equal_but_for_rounding(&format!("{name}.{field}"), a, b),
            (Value::Number(x), Value::Number(y)) if x.is_f64() => {
                let off = (x.as_f64().expect("a number") - y.as_f64().expect("a number")).abs();
                assert!(off < 1e-4, "{name}.{field}: {a} instead of {b}");
            }
            _ => assert_eq!(a, b, "{name}.{field}"),
        }
    }
}

#[test]
fn shots_can_come_from_another_file() {
    let [(task, data, written), ..] = few_shot_tasks();
    let records = std::fs::read_to_string(&data).expect("just written");
    let split: Vec<&str> = records.split_inclusive('\n').collect();
    let questions = file("few-shot-questions.jsonl", split[..3].concat().as_bytes());
    let train = file("few-shot-train.jsonl", format!("{}{}{}", split[3], split[4], split[0]).as_bytes());
    let few = evaluate(task, &questions, &["--shots", "2", "--shots-from", &train, "--kernel", "dense"]);
    assert_equal_but_for_rounding(task, &few, &evaluate(task, &written, &["--kernel", "dense"]));
}

#[test]
fn shots_that_cannot_be_given_are_refused() {
    let [(task, data, _), (_, schema, _), ..] = few_shot_tasks();
    let refused = |task: &str, data: &str, more: &[&str], parts: &[&str]| {
        assert_refused("evaluate", &[&["--task", task, "--data", data][..], more].concat(), parts);
    };
    refused(task, &data, &["--shots", "5"], &["--data", "more than 5 records", "got 5", "--shots-from"]);
    refused(task, &data, &["--shots", "-1"], &["--shots", "whole number"]);
    refused(task, &data, &["--shots-from", &schema], &["--shots-from", "no example is asked for"]);
    let from = |file: &'static str| ["--shots", "2", "--shots-from", file];
    refused(task, &data, &from("no-such-file.jsonl"), &["--shots-from no-such-file.jsonl"]);
    refused(task, &data, &["--shots", "2", "--shots-from", &schema], &["--shots-from", "use --task schema"]);
    refused(task, &data, &["--shots", "2", "--shots-from", &data], &["another file than --data"]);
    let other = file("few-shot-few.jsonl", CHOICES.as_bytes());
    refused(task, &data, &["--shots", "4", "--shots-from", &other], &["at least 4 records", "got 3"]);
    let squad = file("few-shot-squad.json", SQUAD.as_bytes());
    refused("squad", &squad, &["--shots", "1"], &["--shots", "--task squad", "last-word"]);
    refused("perplexity", &squad, &["--shots", "1"], &["--shots", "--task perplexity"]);
}

/// The embedded model in a file that asks for a begin-of-text token.
#[test]
fn every_window_of_perplexity_begins_with_the_token_that_the_model_asks_for() {
    const KEY: &[u8] = b"tokenizer.ggml.add_bos_token";
    let mut bytes = include_bytes!("../assets/fairy-tales.gguf").to_vec();
    // Behind the key stand the type, four bytes, and the value.
    let value = KEY.len() + 4 + bytes.windows(KEY.len()).position(|part| part == KEY).expect("the key");
    bytes[value] = 1;
    let path = file("asks-for-a-beginning.gguf", &bytes);
    let text = "Once upon a time there was a king who had three sons. ".repeat(20);
    let data = file("beginnings.txt", text.as_bytes());
    let report = evaluate(
        "perplexity",
        &data,
        &["--model", &path, "--context", "33", "--limit", "3", "--kernel", "dense", "--kv", "f32"],
    );
    assert_eq!((report["examples"].as_u64(), report["tokens"].as_u64()), (Some(3), Some(3 * 32)));

    let model = LoadedModel::open(Some(path.as_ref())).expect("the model");
    let ids = model.tokenizer.encode(&text, false).expect("tokens");
    let spec = KernelSpec::default().kernel(KernelKind::Dense).store(KvStore::F32);
    let mut sum = 0.0;
    for part in ids.chunks_exact(32).take(3) {
        let window = [&[model.tokenizer.bos().expect("a token")], part].concat();
        let mut session = Session::with_spec(model.graph.clone(), &spec).expect("a session");
        session
            .score(&window, |done, logits| {
                assert_eq!(done, window.len());
                for (row, &next) in logits.outer_iter().zip(part) {
                    let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                    sum += total.ln() - f64::from(row[next as usize]);
                }
            })
            .expect("logits");
    }
    let (got, expected) = (report["perplexity"].as_f64().expect("a number"), (sum / 96.0).exp());
    assert!((got / expected - 1.0).abs() < 1e-5, "{got}, expected {expected}");
}

#[test]
fn attention_token_by_token_is_the_same_where_nothing_is_skipped() {
    let data = file("decode.txt", include_bytes!("../../../docs/method.md"));
    let report = |more: &[&str]| {
        // Rounding activations to 8 bits would make more of the last bits in which the two ways differ.
        let args = ["--context", "200", "--limit", "1", "--window", "16", "--kv", "f32", "--linear", "f32"];
        evaluate("perplexity", &data, &[&args[..], &["--compare", "dense"], more].concat())
    };
    let close = |a: &Value, b: &Value, name: &str| {
        let [a, b] = [a, b].map(|report| report[name].as_f64().expect("a number"));
        assert!((a - b).abs() <= 1e-3 * a.abs(), "{name}: {a} {b}");
    };
    let (whole, decoded) = (report(&["--skip-margin", "off"]), report(&["--skip-margin", "off", "--decode"]));
    for name in ["perplexity", "zero_fraction", "sparsity"] {
        close(&whole, &decoded, name);
    }
    // Alone a query skips more than in a tile.
    let (whole, decoded) = (report(&["--skip-margin", "4"]), report(&["--skip-margin", "4", "--decode"]));
    assert!(decoded["values_skipped"].as_f64() > whole["values_skipped"].as_f64());
    assert_refused("evaluate", &["--task", "choices", "--data", &data, "--decode"], &["--decode"]);
}

#[test]
fn more_examples_can_follow_in_the_same_log() {
    let data = file("extended.jsonl", CHOICES.as_bytes());
    let log = file("extended.log", b"");
    std::fs::remove_file(&log).expect("just written");
    evaluate("choices", &data, &["--limit", "1", "--resume", &log]);
    let extended = numbers(evaluate("choices", &data, &["--resume", &log]));
    assert_eq!(extended, numbers(evaluate("choices", &data, &[])));
}

#[test]
fn bad_records() {
    let refused = |task: &str, name: &str, contents: &[u8], parts: &[&str]| {
        let data = file(name, contents);
        assert_refused("evaluate", &["--task", task, "--data", &data], &[&[name], parts].concat());
    };
    for task in ["choices", "schema", "last-word", "squad"] {
        refused(task, "no-records.jsonl", b"", &["got an empty file"]);
        refused(task, "blank.jsonl", b"\n \n", &["got an empty file"]);
        refused(task, "latin-1.jsonl", b"{\"query\": \"\xe9\"}", &["UTF-8"]);
    }
    refused("choices", "broken.jsonl", format!("{CHOICES}{{\"query\"").as_bytes(), &["line 4", "not JSON"]);
    refused(
        "choices",
        "schema-as-choices.jsonl",
        SCHEMA.as_bytes(),
        &["line 1", "query, choices, gold", "use --task schema"],
    );
    refused(
        "squad",
        "choices-as-squad.jsonl",
        CHOICES.as_bytes(),
        &["expects the fields data", "use --task choices"],
    );
    refused(
        "choices",
        "squad-as-choices.json",
        SQUAD.as_bytes(),
        &["found data, version", "use --task squad"],
    );
    refused("squad", "broken.json", &SQUAD.as_bytes()[..100], &["the JSON of SQuAD 2.0"]);
    let gold = CHOICES.replace("\"gold\": 1", "\"gold\": 2");
    refused("choices", "gold.jsonl", gold.as_bytes(), &["line 3", "`gold`", "from 0 to 1, got 2"]);
    let none = r#"{"query": "a", "choices": [], "gold": 0}"#;
    refused("choices", "no-choices.jsonl", none.as_bytes(), &["line 1", "at least one of `choices`"]);
    let empty = LAST_WORD.replace("\"time\"", "\"\"");
    refused(
        "last-word",
        "no-continuation.jsonl",
        empty.as_bytes(),
        &["line 1", "`continuation`, got an empty text"],
    );
    let long = format!("{}\n", json!({"context": "a", "continuation": "king ".repeat(1200)}));
    refused(
        "last-word",
        "too-long.jsonl",
        long.as_bytes(),
        &["can be scored, got 1 that cannot", "longer than the context"],
    );
}
