//! Says what a model file holds, and what its caches will take.
//!
//! `cargo run --release -- inspect --model FILE`

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use deltallm::models::{LayerTensor, ModelConfig, ModelFile, TensorId, Tokenizer};
use deltallm::{
    AttentionShape, Isa, KernelContext, KernelKind, KernelSpec, KvStore, Precision, SpecOverrides,
};
use serde::Serialize;

use crate::{KernelChoice, ModelProfile, Phases, format_bytes, model_file, model_name, print, print_json};

/// Lengths that bytes are told for, beside the model's context.
const LENGTHS: [usize; 2] = [1024, 4096];

/// Say what a model file holds, which kernels and stores fit it, and how many bytes its caches take
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<PathBuf>,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = model_file(args.model.as_deref())?;
    let report = Report::new(&file)?;
    let mut text = Vec::new();
    report.describe(&mut text)?;
    print(String::from_utf8_lossy(&text))?;
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// The result for programs.
#[derive(Serialize)]
struct Report {
    model: String,
    format: &'static str,
    architecture: &'static str,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden_size: usize,
    intermediate_size: usize,
    vocab_size: usize,
    context_length: usize,
    /// Tokens that layers with a window attend to, and how many layers have one; absent where all attend to everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    sliding_window: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sliding_layers: Option<usize>,
    /// As profiles name the model.
    fingerprint: String,
    tensors: Vec<Tensors>,
    tokenizer: Option<TokenizerReport>,
    /// Why there is no tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer_error: Option<String>,
    /// Built-in settings that are for this model; the bytes of hybrid and delta attention are theirs.
    profile: Option<String>,
    simd: String,
    precisions: Vec<String>,
    stores: Vec<Store>,
}

/// All tensors of one type.
#[derive(Serialize)]
struct Tensors {
    #[serde(rename = "type")]
    kind: String,
    count: usize,
    bytes: usize,
}

#[derive(Serialize)]
struct TokenizerReport {
    tokens: usize,
    chat_template: bool,
}

/// A kernel on a store.
#[derive(Serialize)]
struct Store {
    kernel: KernelKind,
    kv: KvStore,
    /// At the model's context.
    bytes_per_token: f64,
    /// Of a dense f16 cache, at the model's context.
    share_of_dense_f16: f64,
    /// The length from which on it is smaller than a dense f16 cache; null if it is not.
    smaller_than_f16_from: Option<usize>,
    bytes: Vec<Bytes>,
}

#[derive(Serialize)]
struct Bytes {
    tokens: usize,
    bytes: usize,
}

impl Report {
    fn new(file: &ModelFile) -> anyhow::Result<Self> {
        let config = file.config()?;
        let isa = Isa::from_env()?;
        let first_norm = file.norm(&config, TensorId::Layer(0, LayerTensor::AttentionNorm))?;
        let profile = ModelProfile::built_in_for(&config, &first_norm);
        let (tokenizer, tokenizer_error) = match Tokenizer::from_model(file) {
            Ok(tokenizer) => {
                let (tokens, chat_template) = (tokenizer.vocab_size(), tokenizer.chat_template().is_some());
                (Some(TokenizerReport { tokens, chat_template }), None)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let windows: Vec<usize> =
            (0..config.layers).filter_map(|layer| config.mask(layer).most_keys()).collect();
        let sliding_window = windows.iter().copied().max();
        let ModelConfig { layers, heads, kv_heads, head_dim, hidden_size, .. } = config;
        let ModelConfig { intermediate_size, vocab_size, context_length, .. } = config;
        Ok(Self {
            model: model_name(file),
            format: if file.gguf().is_some() { "gguf" } else { "safetensors" },
            architecture: config.architecture.name(),
            layers,
            heads,
            kv_heads,
            head_dim,
            hidden_size,
            intermediate_size,
            vocab_size,
            context_length,
            sliding_window,
            sliding_layers: sliding_window.map(|_| windows.len()),
            fingerprint: config.fingerprint().to_string(),
            tensors: tensors(file),
            tokenizer,
            tokenizer_error,
            simd: isa.to_string(),
            precisions: Precision::ALL
                .into_iter()
                .filter(|precision| precision.is_multiplied_by(isa))
                .map(|precision| precision.to_string())
                .collect(),
            stores: stores(&config, isa, profile.as_ref())?,
            profile: profile.map(|profile| profile.name),
        })
    }

    fn describe(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Self { layers, heads, kv_heads, head_dim, hidden_size, intermediate_size, .. } = self;
        writeln!(out, "model        {}: {}, {}", self.model, self.architecture, self.format)?;
        writeln!(
            out,
            "layers       {layers} of width {hidden_size} and {intermediate_size}, {heads} heads over {kv_heads} kv heads of \
             {head_dim} channels"
        )?;
        writeln!(out, "context      {} tokens, vocabulary {}", self.context_length, self.vocab_size)?;
        if let (Some(window), Some(windows)) = (self.sliding_window, self.sliding_layers) {
            writeln!(
                out,
                "windows      {windows} of {layers} layers attend to the latest {window} tokens, and hold no more"
            )?;
        }
        for (index, Tensors { kind, count, bytes }) in self.tensors.iter().enumerate() {
            let label = if index == 0 { "tensors" } else { "" };
            writeln!(out, "{label:<12} {count} of type {kind}, {}", format_bytes(*bytes as u64))?;
        }
        match (&self.tokenizer, &self.tokenizer_error) {
            (Some(TokenizerReport { tokens, chat_template }), _) => {
                let with = if *chat_template { "with" } else { "without" };
                writeln!(out, "tokenizer    {tokens} tokens, {with} a chat template")?;
            }
            (None, error) => writeln!(out, "tokenizer    none: {}", error.as_deref().unwrap_or_default())?,
        }
        writeln!(
            out,
            "settings     {}",
            self.profile.as_deref().unwrap_or("none for this model; calibrate makes some")
        )?;
        writeln!(out, "this machine {}, products of {}", self.simd, self.precisions.join(", "))?;
        self.describe_stores(out)
    }

    fn describe_stores(&self, out: &mut impl Write) -> std::io::Result<()> {
        let lengths: Vec<usize> =
            self.stores.iter().take(1).flat_map(|store| store.bytes.iter().map(|at| at.tokens)).collect();
        let header: String = lengths.iter().map(|tokens| format!(" {tokens:>12}")).collect();
        writeln!(out, "\n{:<16} {:>11}{header}   of dense f16   smaller from", "cache", "bytes/token")?;
        for store in &self.stores {
            let bytes = store.bytes.iter().map(|at| format!(" {:>12}", format_bytes(at.bytes as u64)));
            writeln!(
                out,
                "{:<16} {:>11.0}{}   {:>10.1} %   {:>12}",
                format!("{} {}", store.kernel, store.kv),
                store.bytes_per_token,
                bytes.collect::<String>(),
                100.0 * store.share_of_dense_f16,
                store
                    .smaller_than_f16_from
                    .map_or_else(|| "never".to_owned(), |tokens| format!("{tokens} tokens"))
            )?;
        }
        writeln!(
            out,
            "\nHybrid caches in int8 and compact are never larger than a dense f16 one: below \"smaller from\" they are held in f16. \
             Those in f32, f16 and bf16 also hold an exact copy of the window. The figures assume keys that change as little as in the \
             calibration text."
        )
    }
}

/// By type, the largest part first.
fn tensors(file: &ModelFile) -> Vec<Tensors> {
    let mut by_type: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut add = |kind: String, bytes: usize| {
        let (count, sum) = by_type.entry(kind).or_default();
        (*count, *sum) = (*count + 1, *sum + bytes);
    };
    for tensor in file.gguf_files().flat_map(|header| header.tensors()) {
        add(tensor.ty.name().to_owned(), tensor.range.len());
    }
    if let Some(model) = file.safetensors() {
        model.tensors().for_each(|(_, kind, bytes)| add(kind, bytes));
    }
    let mut tensors: Vec<Tensors> =
        by_type.into_iter().map(|(kind, (count, bytes))| Tensors { kind, count, bytes }).collect();
    tensors.sort_by_key(|tensors| std::cmp::Reverse(tensors.bytes));
    tensors
}

/// Every kernel on every store that it takes.
fn stores(config: &ModelConfig, isa: Isa, profile: Option<&ModelProfile>) -> anyhow::Result<Vec<Store>> {
    let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
    let base = profile.map_or_else(KernelSpec::default, |profile| profile.settings.spec().clone());
    let choice = |kernel: KernelKind, store: KvStore| {
        let given = SpecOverrides::default().kernel(kernel).store(store);
        let spec = base.clone().with(&given);
        spec.validate(shape, config.layers).ok()?;
        let masks: Vec<_> = (0..config.layers).map(|layer| config.mask(layer)).collect();
        let context = KernelContext::new(shape).isa(isa).masks(masks);
        Some(KernelChoice::new(spec, context, profile.cloned(), None, Phases::Both))
    };
    let context = config.context_length;
    let mut lengths: Vec<usize> = LENGTHS.into_iter().filter(|tokens| *tokens < context).collect();
    lengths.push(context);
    let dense_f16 = crate::dense_f16_bytes(config, context) as f64;
    let pairs = KernelKind::ALL.into_iter().flat_map(|kernel| KvStore::ALL.map(|store| (kernel, store)));
    let row = |(kernel, kv): (KernelKind, KvStore)| {
        let choice = choice(kernel, kv)?;
        let bytes = |tokens: &usize| Bytes { tokens: *tokens, bytes: choice.planned_bytes(config, *tokens) };
        let all = choice.planned_bytes(config, context) as f64;
        Some(Store {
            kernel,
            kv,
            bytes_per_token: all / context as f64,
            share_of_dense_f16: all / dense_f16,
            smaller_than_f16_from: choice.smaller_than_f16_from(config),
            bytes: lengths.iter().map(bytes).collect(),
        })
    };
    Ok(pairs.filter_map(row).collect())
}
