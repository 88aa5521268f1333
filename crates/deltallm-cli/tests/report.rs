//! The program `report` as a user runs it.

mod common;

use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use common::{assert_refused, file, json, path, run};
use deltallm::{AttentionProfile, KernelSpec, LayerSpec, ThresholdProfile};
use deltallm_cli::LoadedModel;
use deltallm_cli::report::PICTURE_SIZE;
use serde_json::Value;

const FILES: [&str; 7] =
    ["accuracy.png", "bytes.png", "pairs.png", "report.html", "report.json", "sparsity.png", "time.png"];

/// A text of some 6000 tokens.
fn text() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/method.md").display().to_string()
}

/// A profile for the embedded model whose first layer is dense.
fn profile() -> String {
    let model = LoadedModel::open(None).expect("the embedded model");
    let config = model.graph.config();
    let shape = [config.layers, config.kv_heads, config.head_dim];
    let thresholds = (0..shape.iter().product()).map(|i: usize| 0.4 + 0.1 * (i % 5) as f32).collect();
    let thresholds = ThresholdProfile::new(config.fingerprint(), shape, thresholds);
    let layers = (0..config.layers).map(|layer| LayerSpec::default().dense(layer == 0));
    let thresholds = Arc::new(thresholds.expect("valid"));
    let spec = KernelSpec::default().layers(layers.collect());
    let profile = AttentionProfile::new(thresholds, spec).expect("valid");
    file("report-profile.json", &serde_json::to_vec(&profile).expect("JSON"))
}

fn report(out: &str, args: &[&str]) -> Output {
    run("report", &[&["--text", &text(), "--out", out], args].concat())
}

/// A number at a path of keys and indices.
fn number(json: &Value, pointer: &str) -> f64 {
    json.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {pointer}"))
}

fn list<'j>(json: &'j Value, pointer: &str) -> &'j [Value] {
    json.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("no list at {pointer}"))
}

/// The pairs of a kind (`w`, `s`, `d`, `x`) in rows such as `4s20d30x64w`.
fn pairs_in(rows: &[Value], kind: char) -> usize {
    let mut sum = 0;
    for row in rows {
        let mut length = 0;
        for c in row.as_str().expect("a row").chars() {
            match c.to_digit(10) {
                Some(digit) => length = 10 * length + digit as usize,
                None => {
                    sum += if c == kind { length } else { 0 };
                    length = 0;
                }
            }
        }
    }
    sum
}

#[test]
fn the_pictures_are_there_and_their_numbers_agree() {
    let (out, profile) = (path("report-pictures"), profile());
    let _ = std::fs::remove_dir_all(&out);
    let small =
        ["--context", "192", "--windows", "1", "--window", "16", "--skip-margin", "2", "--layer", "2"];
    let output = report(&out, &[&small[..], &["--profile", &profile, "--json"]].concat());
    let json = json(&output);

    let mut files: Vec<_> = std::fs::read_dir(&out)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    files.sort_unstable();
    assert_eq!(files, FILES);
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    for file in FILES {
        assert!(stdout.lines().any(|line| line.contains(&format!("{file}: "))), "{file} in {stdout}");
        if file.ends_with(".png") {
            assert_eq!(picture_size(&format!("{out}/{file}")), PICTURE_SIZE, "{file}");
        }
    }
    let file = std::fs::read(Path::new(&out).join("report.json")).expect("a file");
    assert_eq!(serde_json::from_slice::<Value>(&file).expect("JSON"), json);

    // Sparsity: 5 layers of 2 kv heads, and the mean of equally large heads is the total.
    let layers = list(&json, "/sparsity/layers");
    let heads: Vec<f64> = (layers.iter())
        .filter(|layer| layer["dense"] == false)
        .flat_map(|layer| list(layer, "/zero_fraction").iter().filter_map(Value::as_f64))
        .collect();
    assert_eq!((layers.len(), heads.len(), &layers[0]["dense"]), (5, 8, &Value::Bool(true)));
    let mean = heads.iter().sum::<f64>() / heads.len() as f64;
    assert!((mean - number(&json, "/sparsity/zero_fraction")).abs() < 1e-9);

    // Accuracy: every rule at five rising zero fractions.
    assert_eq!(list(&json, "/accuracy/rules").len(), 3);
    for rule in list(&json, "/accuracy/rules") {
        let points = list(rule, "/points");
        assert_eq!(points.len(), 5);
        for pair in points.windows(2) {
            assert!(number(&pair[0], "/zero_fraction") < number(&pair[1], "/zero_fraction"), "{rule}");
        }
        for point in points {
            assert!(number(point, "/kl") > 0.0 && number(point, "/perplexity_change_error") > 0.0, "{point}");
            assert_eq!(number(point, "/values_skipped"), 0.0);
        }
    }
    assert_eq!(number(&json, "/accuracy/tokens"), 191.0);

    // The same run in three pictures.
    let kl = number(&json, "/accuracy/kernel/kl");
    assert_eq!(number(&json, "/bytes/stores/5/kl"), kl);
    assert_eq!(number(&json, "/time/lengths/2/kl"), kl);
    assert_eq!(number(&json, "/accuracy/kernel/zero_fraction"), number(&json, "/sparsity/zero_fraction"));

    // Bytes: keys and values of 64 channels, and tables of less than a tenth. Of keys in 8 bits the first 64 are in f16.
    let bytes = |store| number(&json, &format!("/bytes/stores/{store}/bytes_per_token"));
    for (store, least) in [(0, 512.0), (1, 256.0), (2, 256.0), (3, 156.0)] {
        assert!((least..1.1 * least).contains(&bytes(store)), "{store}");
    }
    assert!((4..8).all(|store| bytes(store) > 0.5 * bytes(store - 4)));
    assert_eq!(list(&json, "/bytes/stores").len(), 10);
    assert_eq!((bytes(9), json["bytes"]["stores"][9]["kv"].as_str()), (72.0, Some("int4")));

    // The page: the answer, every store and length, and the pictures inside.
    let page = std::fs::read_to_string(Path::new(&out).join("report.html")).expect("UTF-8");
    let headline = json["verdict"]["headline"].as_str().expect("a sentence");
    assert!(page.contains(headline) && stdout.contains(headline), "{headline}");
    assert_eq!(page.matches("data:image/png;base64,").count(), 5);
    assert!(["dense int4", "hybrid compact", "<td>384</td>"].iter().all(|text| page.contains(text)));
    // Not "http": four letters also come up in the pictures now and then.
    assert!(!page.contains("://"), "nothing is loaded from elsewhere");

    // Time: a quarter of the context to twice the context.
    let lengths = list(&json, "/time/lengths");
    assert_eq!(
        lengths.iter().map(|at| number(at, "/tokens")).collect::<Vec<_>>(),
        [48.0, 96.0, 192.0, 384.0]
    );
    for time in lengths.iter().flat_map(|at| [&at["dense"], &at["hybrid"]]) {
        let [low, middle, high] = ["/lowest", "/median", "/highest"].map(|name| number(time, name));
        assert!(0.0 < low && low <= middle && middle <= high, "{time}");
    }

    // Pairs: what is drawn is what the kernel has counted, once per query head.
    assert_eq!(number(&json, "/pairs/layer"), 2.0);
    let rows = list(&json, "/pairs/map");
    for (kind, name) in [('w', "window"), ('s', "sinks"), ('d', "deltas"), ('x', "skipped")] {
        assert_eq!(pairs_in(rows, kind) as f64, number(&json, &format!("/pairs/counts/{name}")), "{name}");
    }
    let count = |names: &[&str]| -> f64 {
        names.iter().map(|name| number(&json, &format!("/pairs/counts/{name}"))).sum()
    };
    let kernel = |name: &str| number(&json, &format!("/pairs/kernel/{name}")) / number(&json, "/pairs/group");
    assert_eq!(count(&["window", "sinks"]), kernel("exact_pairs"));
    assert_eq!(count(&["skipped"]), kernel("skipped_values"));
    assert_eq!(count(&["window", "sinks", "deltas", "skipped"]), 192.0 * 193.0 / 2.0);
    assert!(count(&["skipped"]) > 0.0);
}

/// Width and height of a PNG that a program has written.
#[track_caller]
fn picture_size(path: &str) -> [u32; 2] {
    let png = std::fs::read(path).expect("a file");
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{path}");
    [16, 20].map(|at| u32::from_be_bytes(png[at..at + 4].try_into().expect("four bytes")))
}

#[test]
fn the_pictures_of_the_documentation_are_drawn() {
    let (out, text) = (path("method.png"), text());
    let args =
        ["method", "--text", &text, "--out", &out, "--start", "What `deltallm` computes", "--tokens", "96"];
    let head = ["--layer", "2", "--head", "1", "--shown", "32"];
    let kernel = ["--theta", "0.6", "--window", "16", "--skip-margin", "2", "--kv", "f32"];
    let output = run("pictures", &[&args[..], &head, &kernel].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("layer 2, kv head 1, 96 tokens: "));
    assert_eq!(picture_size(&out), [2800, 1000]);
    assert_refused(
        "pictures",
        &[&args[..], &["--layer", "5"], &kernel].concat(),
        &["--layer", "less than 5"],
    );
    assert_refused("pictures", &[&args[..], &head].concat(), &["--theta"]);
    assert_refused("pictures", &[&args[..], &kernel, &["--shown", "0"]].concat(), &["--shown", "1 to 384"]);
    let output = run("pictures", &[&args[..], &["--layer", "2", "--shown", "1"], &kernel].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let data = |name: &str| {
        format!("{}/../../docs/results/data/bitnet-2b4t-{name}.json", env!("CARGO_MANIFEST_DIR"))
    };
    let (out, prompts, decode, attention) =
        (path("curves.png"), data("prefill"), data("decode"), data("attention"));
    let curves = |decode| {
        ["curves", "--prompts", &prompts, "--decode", decode, "--attention", &attention, "--out", &out]
    };
    let output = run("pictures", &curves(&decode));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(picture_size(&out), [1400, 1260]);
    assert_refused("pictures", &curves(&attention), &["--decode", "printed with --json"]);
    let nothing = file("curves-of-nothing.json", br#"{"rows":[]}"#);
    let args =
        ["curves", "--prompts", &nothing, "--decode", &nothing, "--attention", &nothing, "--out", &out];
    assert_refused("pictures", &args, &["expected"]);
    let row = r#"{"model":"m","cpu":"c","date":"d","threads":1,"setting":"s","tokens":9,"kl":0.0,"bytes_of_dense":1.0,"attention_ratio":1.0}"#;
    let flat = file("lengths-without-loss.jsonl", row.as_bytes());
    assert_refused("pictures", &["lengths", "--run", &flat, "--out", &out], &["divergence", "above 0"]);
}

#[test]
fn bad_input_is_one_line_and_writes_nothing() {
    let (empty, short) = (file("report-empty.txt", b""), file("report-short.txt", b"Once upon a time"));
    let (out, text) = (path("report-refused"), text());
    let _ = std::fs::remove_dir_all(&out);
    let refused = |text: &str, out: &str, args: &[&str], parts: &[&str]| {
        assert_refused("report", &[&["--text", text, "--out", out], args].concat(), parts);
    };
    let cases: [(&str, &[&str], &[&str]); 10] = [
        ("no-such.txt", &[], &["no-such.txt", "expected a text file"]),
        (&empty, &[], &["--text", "empty file"]),
        (&short, &[], &["--text", "2 windows of 1024 tokens", "longer text"]),
        (&text, &["--layer", "5"], &["--layer", "0 to 4", "got 5"]),
        (&text, &["--head", "2"], &["--head", "0 to 1", "got 2"]),
        (&text, &["--context", "64"], &["--context", "70", "1024", "got 64"]),
        (&text, &["--context", "2048"], &["--context", "got 2048"]),
        (&text, &["--windows", "0"], &["--windows"]),
        (&text, &["--kernel", "dense"], &["--kernel", "expected hybrid"]),
        (&text, &["--phases", "prefill"], &["--phases", "expected both"]),
    ];
    for (text, args, parts) in cases {
        refused(text, &out, args, parts);
        assert!(!Path::new(&out).exists());
    }
    refused(&text, &short, &[], &["--out", "expected a folder"]);
    refused(&text, &format!("{short}/below"), &[], &["--out", "expected a folder"]);
    assert_eq!(std::fs::read(&short).expect("still there"), b"Once upon a time");
}
