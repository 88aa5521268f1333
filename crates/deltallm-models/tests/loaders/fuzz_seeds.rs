//! Writes what the fuzz targets of `fuzz/` start from.

use std::fs;
use std::path::Path;

use deltallm_models::gguf::{Array, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{Model, ModelFile, Tokenizer};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use crate::common::bitnet::{pack, to_bytes};
use crate::common::files::directory;
use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

/// The tensors of a one-layer model without biases: name in GGUF files, name in directories, shape.
fn shapes(hidden: usize, head: usize, ffn: usize) -> Vec<(&'static str, &'static str, Vec<usize>)> {
    vec![
        ("token_embd", "model.embed_tokens", vec![3, hidden]),
        ("output_norm", "model.norm", vec![hidden]),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm", vec![hidden]),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", vec![2 * head, hidden]),
        ("blk.0.attn_k", "model.layers.0.self_attn.k_proj", vec![head, hidden]),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj", vec![head, hidden]),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj", vec![hidden, 2 * head]),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm", vec![hidden]),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj", vec![ffn, hidden]),
        ("blk.0.ffn_up", "model.layers.0.mlp.up_proj", vec![ffn, hidden]),
        ("blk.0.ffn_down", "model.layers.0.mlp.down_proj", vec![hidden, ffn]),
    ]
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + 3) % 17) as f32 / 16.0 - 0.5).collect()
}

/// A model whose projections have that type, if their rows are whole blocks of it, and are F16 otherwise.
fn gguf(architecture: &str, hidden: usize, head: usize, ffn: usize, ty: TensorType) -> GgufWriter {
    let mut writer = GgufWriter::new().set("general.architecture", Value::String(architecture.into()));
    for (key, size) in [
        ("embedding_length", hidden),
        ("block_count", 1),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", head),
        ("feed_forward_length", ffn),
        ("context_length", 16),
    ] {
        writer = writer.set(&format!("{architecture}.{key}"), Value::U32(size as u32));
    }
    for (key, number) in [("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 1e4)] {
        writer = writer.set(&format!("{architecture}.{key}"), Value::F32(number));
    }
    let bitnet = architecture == "bitnet";
    if bitnet {
        let one = |writer: GgufWriter, name: &str, length: usize| {
            writer.f32_tensor(&format!("blk.0.{name}.weight"), &[length], &vec![1.0; length])
        };
        writer = one(writer, "attn_sub_norm", 2 * head);
        writer = one(writer, "ffn_sub_norm", ffn);
    }
    for (name, _, shape) in shapes(hidden, head, ffn) {
        let (name, count) = (format!("{name}.weight"), shape.iter().product());
        let ternary = || (0..count).map(|i| (i % 3) as i8 - 1);
        let whole = shape.len() == 2 && shape[1] % ty.block_elements() == 0;
        writer = match shape.len() {
            1 => writer.f32_tensor(&name, &shape, &vec![1.0; count]),
            _ if name.starts_with("token") => {
                writer.tensor(&name, &shape, TensorType::F16, &to_bytes(TensorType::F16, &numbers(count)))
            }
            _ if bitnet && whole => {
                writer.tensor(&name, &shape, ty, &pack(ty, &Vec::from_iter(ternary()), 0.5))
            }
            _ if bitnet => {
                let values = Vec::from_iter(ternary().map(f32::from));
                writer.tensor(&name, &shape, TensorType::F16, &to_bytes(TensorType::F16, &values))
            }
            _ if whole => {
                let length = ty.bytes_for(count as u64).unwrap() as usize;
                // As scales of 16 bits these are small numbers.
                writer.tensor(&name, &shape, ty, &vec![0x21; length])
            }
            _ => writer.tensor(&name, &shape, TensorType::F16, &to_bytes(TensorType::F16, &numbers(count))),
        };
    }
    writer
}

fn gguf_vocabulary(model: &str) -> GgufWriter {
    let strings = |tokens: &[&str]| Value::Array(Array::String(tokens.iter().map(|t| (*t).into()).collect()));
    let mut tokens = vec!["a", "b", "ab", "<unk>", "<s>"];
    let mut types = vec![1, 1, 1, 2, 3];
    if model == "llama" {
        tokens.extend(["▁", "▁a", "<0x0A>", "  "]);
        types.extend([1, 1, 6, 4]);
    }
    let scores = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let writer = GgufWriter::new()
        .set("tokenizer.ggml.model", Value::String(model.into()))
        .set("tokenizer.ggml.tokens", strings(&tokens))
        .set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)))
        .set("tokenizer.ggml.bos_token_id", Value::U32(4))
        .set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    match model {
        "llama" => writer.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores))),
        _ => writer
            .set("tokenizer.ggml.merges", strings(&["a b"]))
            .set("tokenizer.ggml.pre", Value::String("llama-bpe".into())),
    }
}

fn config(architecture: &str) -> Json {
    let mut config = json!({
        "model_type": architecture, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 3,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": true,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
            "original_max_position_embeddings": 8
        }
    });
    if architecture == "bitnet" {
        config["hidden_act"] = "relu2".into();
        config["quantization_config"] =
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"});
    }
    config
}

fn safetensors(architecture: &str, ty: TensorType) -> Vec<u8> {
    let dtype = match ty {
        TensorType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    };
    let mut tensors = shapes(8, 4, 6);
    if architecture == "bitnet" {
        tensors.push(("", "model.layers.0.self_attn.attn_sub_norm", vec![8]));
        tensors.push(("", "model.layers.0.mlp.ffn_sub_norm", vec![6]));
    }
    let tensors = tensors.iter().map(|(_, name, shape)| {
        (format!("{name}.weight"), shape.clone(), to_bytes(ty, &numbers(shape.iter().product())))
    });
    let tensors = Vec::from_iter(tensors);
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

const TOKENIZER: &str = r#"{"added_tokens":[{"id":3,"content":"<s>","special":true,"rstrip":true}],
"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true}]},
"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[3],"tokens":["<s>"]}}},
"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
"model":{"type":"BPE","unk_token":"a","fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{"a":0,"b":1,"ab":2,"<0x0A>":4,"▁":5},"merges":[["a","b"]]}}"#;

const BYTE_LEVEL_TOKENIZER: &str = r#"{"added_tokens":[{"id":3,"content":"<s>","special":false,"lstrip":true}],
"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"post_processor":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;

const STEPS_OF_TOKENIZERS: [(&str, &str); 4] = [
    (
        "pieces",
        r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"},{"type":"NFKC"},{"type":"StripAccents"}]},"decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}}"#,
    ),
    (
        "metaspace",
        r#"{"pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true},"decoder":{"type":"Metaspace","replacement":"▁","prepend_scheme":"first","split":true}}"#,
    ),
    (
        "bytes",
        r#"{"normalizer":{"type":"Replace","pattern":{"Regex":"^|b*"},"content":"a"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s)|\\p{N}{1,3}|\\s+(?!\\S)"},"behavior":"MergedWithNext","invert":true},{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Contiguous"},{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}]},"decoder":{"type":"ByteLevel"}}"#,
    ),
    (
        "around",
        r#"{"post_processor":{"type":"Sequence","processors":[{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true},{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}}]}}"#,
    ),
];

const PROFILE: &str = r#"{"version":3,"model":"0000000000000007","kv_heads":1,"head_dim":2,
"provenance":{"model":"m","text_sha256":"00","tokens":8,"context":4,"goal":{"kl":0.01},"zero_fraction":0.5,"held_out":{"tokens":4,"zero_fraction":0.5,"sparsity":0.4,"values_skipped":0.3,"perplexity_dense":9.0,"perplexity_change":0.001,"kl":0.01,"top1_agreement":0.9}},
"spec":{"kernel":"hybrid","store":"f16","precision":"int16","scale":0.5,"softcap":50,"thresholds":{"channels":[0.0,0.5,0.25,1]},"window":"8","sinks":2,"skip_margin":4.5,"exact_prompt":3,
"layers":[{"dense":true,"exact_prompt":0,"skip_margin":null,"store":null},{"dense":false,"exact_prompt":9,"skip_margin":"ln:2.5","store":"compact"}]}}"#;

/// Of kernels for C programs; whether they are taken is tested there.
const C_CONFIGS: [(&str, &str); 3] = [
    ("dense", r#"{"kernel":"dense","heads":4,"kv_heads":2,"head_dim":8}"#),
    (
        "delta",
        r#"{"kernel":"delta","heads":2,"kv_heads":1,"head_dim":2,"store":"compact","thresholds":{"channels":[0.5,0.25]},"simd":"scalar"}"#,
    ),
    (
        "hybrid",
        r#"{"kernel":"hybrid","heads":6,"kv_heads":2,"head_dim":16,"store":"int8","scale":0.25,"softcap":30.0,"precision":"int16",
"parallel":false,"budget_bytes":1048576,"thresholds":{"theta":0.6},"window":"block:0.05","sinks":2,"skip_margin":"ln:3:2","exact_prompt":9}"#,
    ),
];

/// What the target `attention` reads: group, kv heads, head size, store, window, sinks, exact prompt, skip margin, soft cap,
/// precision, budget, threshold, seed, kind of numbers, scales of keys and values, mask; then steps of a kind and a size.
const ATTENTION: [[u8; 17]; 9] = [
    [2, 0, 7, 0, 15, 4, 0, 0, 0, 0, 0, 50, 1, 0, 5, 8, 0],
    [0, 1, 4, 1, 200, 0, 20, 0, 200, 0, 0, 20, 2, 1, 5, 8, 0],
    [1, 0, 3, 2, 7, 2, 0, 120, 0, 0, 0, 60, 3, 3, 5, 9, 0],
    [3, 0, 5, 3, 31, 3, 0, 0, 0, 0, 0, 40, 4, 2, 4, 7, 0],
    [0, 0, 6, 4, 9, 1, 0, 225, 0, 0, 0, 30, 5, 0, 5, 8, 0],
    [1, 1, 2, 4, 40, 8, 60, 0, 0, 230, 210, 45, 6, 4, 6, 10, 0],
    [0, 1, 2, 1, 7, 4, 0, 0, 0, 0, 0, 50, 7, 0, 5, 8, 106],
    [1, 0, 3, 4, 9, 2, 0, 120, 0, 0, 0, 40, 8, 1, 5, 8, 180],
    [1, 0, 2, 3, 11, 3, 20, 0, 0, 0, 0, 40, 9, 0, 5, 8, 230],
];
const STEPS: [[u8; 2]; 14] = [
    [14, 40],
    [5, 19],
    [5, 19],
    [0, 0],
    [0, 0],
    [10, 3],
    [12, 30],
    [5, 33],
    [11, 0],
    [0, 0],
    [13, 70],
    [15, 0],
    [5, 12],
    [15, 1],
];

#[test]
#[ignore = "writes the seeds of the fuzz targets"]
fn write_the_seeds_of_the_fuzz_targets() {
    let models = [
        ("llama-f32", tiny::llama()),
        ("llama-f16", gguf("llama", 8, 4, 6, TensorType::F16)),
        ("llama-bf16", gguf("llama", 8, 4, 6, TensorType::BF16)),
        ("llama-q8_0", gguf("llama", 32, 2, 32, TensorType::Q8_0)),
        ("llama-q4_1", gguf("llama", 32, 2, 32, TensorType::Q4_1)),
        ("llama-q6_k", gguf("llama", 256, 2, 2, TensorType::Q6_K)),
        ("bitnet-i2_s", gguf("bitnet", 128, 2, 2, TensorType::I2_S)),
        ("bitnet-tq1_0", gguf("bitnet", 256, 2, 2, TensorType::TQ1_0)),
        ("bitnet-tq2_0", gguf("bitnet", 256, 2, 2, TensorType::TQ2_0)),
    ];
    for (name, writer) in models {
        let bytes = writer.finish();
        let file = ModelFile::from_gguf_bytes(name, bytes.clone()).unwrap();
        Model::load(&file).unwrap_or_else(|error| panic!("{error}"));
        write("gguf", name, &bytes);
    }
    for (name, architecture, ty) in [
        ("llama-f32", "llama", TensorType::F32),
        ("llama-bf16", "llama", TensorType::BF16),
        ("bitnet-online", "bitnet", TensorType::F32),
    ] {
        let (config, tensors) = (config(architecture).to_string(), safetensors(architecture, ty));
        let folder = directory(&format!("seed-{name}"));
        fs::write(folder.join("config.json"), &config).unwrap();
        fs::write(folder.join("model.safetensors"), &tensors).unwrap();
        let file = ModelFile::open(&folder).unwrap();
        Model::load(&file).unwrap_or_else(|error| panic!("{error}"));
        write("safetensors", name, &[config.as_bytes(), b"\0", &tensors].concat());
        write("config", name, config.as_bytes());
    }
    let text = "ab <s> a\n1234é";
    for model in ["gpt2", "llama"] {
        let bytes = gguf_vocabulary(model).finish();
        Tokenizer::from_model(&ModelFile::from_gguf_bytes(model, bytes.clone()).unwrap()).unwrap();
        write("tokenizer", model, &[text.as_bytes(), b"\0", &bytes].concat());
    }
    for (name, json) in [("json-pieces", TOKENIZER), ("json-bytes", BYTE_LEVEL_TOKENIZER)] {
        let path = directory(&format!("seed-{name}")).join("tokenizer.json");
        fs::write(&path, json).unwrap();
        Tokenizer::from_json_file(&path).unwrap();
        write("tokenizer", name, &[text.as_bytes(), b"\0", json.as_bytes()].concat());
    }
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat/families");
    for template in fs::read_dir(templates).unwrap() {
        let path = template.unwrap().path();
        write("chat", path.file_stem().unwrap().to_str().unwrap(), &fs::read(&path).unwrap());
    }
    for (name, steps) in STEPS_OF_TOKENIZERS {
        write("steps", name, &[text.as_bytes(), b"\0", steps.as_bytes()].concat());
    }
    write("profile", "two-layers", PROFILE.as_bytes());
    for (name, json) in C_CONFIGS {
        write("c_config", name, json.as_bytes());
    }
    let of_a_profile = r#"{"kernel":"hybrid","heads":2,"kv_heads":1,"head_dim":2,"layer":1,"profile":"#;
    write("c_config", "profile", [of_a_profile, PROFILE, "}"].concat().as_bytes());
    for (i, setting) in ATTENTION.iter().enumerate() {
        write("attention", &format!("steps-{i}"), &[setting.as_slice(), STEPS.as_flattened()].concat());
    }
}
