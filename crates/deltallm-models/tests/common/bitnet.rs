//! The BitNet models of `tools/goldens/bitnet.py`, made again from their seeds and written in every form.

use std::fs;
use std::path::Path;

use deltallm_models::gguf::Value;
use deltallm_models::quant::TensorType;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use super::files::{directory, fixture};
use super::gguf_writer::GgufWriter;

/// How the ternary weights of a file are held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// Weights of training, in a directory.
    Online,
    /// Packed in a directory, with a scale to multiply with.
    AutoBitLinear,
    /// Packed in a directory, with a scale to divide by.
    BitLinear,
    /// A GGUF type: weights of training where it is a float type.
    Gguf(TensorType),
    /// A GGUF file of a float type that holds ternary numbers, as llama.cpp's converter makes it.
    GgufNumbers(TensorType),
    /// A GGUF file with -1, 0 and 1 in a float type, and scales as tensors of their own.
    GgufScales(TensorType),
}

/// A model whose weights are known as numbers.
pub(crate) struct Masters {
    pub(crate) config: Json,
    tensors: Vec<Tensor>,
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Names in GGUF files.
const NAMES: [(&str, &str); 15] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
    ("mlp.down_proj", "ffn_down"),
    ("model.layers", "blk"),
];

impl Masters {
    /// The model of a fixture.
    pub(crate) fn new(case: &str, seed: u64) -> Self {
        let path = fixture("bitnet").join(case).join("config.json");
        let config: Json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let size = |key: &str| config[key].as_u64().unwrap() as usize;
        let (hidden, ffn) = (size("hidden_size"), size("intermediate_size"));
        let kv = hidden / size("num_attention_heads") * size("num_key_value_heads");
        let bias = config["attention_bias"] == true;
        let vocab = size("vocab_size");
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        for layer in 0..size("num_hidden_layers") {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[hidden]);
            for (name, rows) in [("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)] {
                add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
                if bias {
                    add(&format!("self_attn.{name}.bias"), &[rows]);
                }
            }
            add("self_attn.attn_sub_norm.weight", &[hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
            add("mlp.gate_proj.weight", &[ffn, hidden]);
            add("mlp.up_proj.weight", &[ffn, hidden]);
            add("mlp.down_proj.weight", &[hidden, ffn]);
            add("mlp.ffn_sub_norm.weight", &[ffn]);
        }
        if config["tie_word_embeddings"] == false {
            shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        let tensors = (shapes.into_iter().enumerate())
            .map(|(number, (name, shape))| {
                let integers = splitmix(100 * seed + number as u64, shape.iter().product());
                let small = ["v_proj", "o_proj", "mlp"].iter().any(|part| name.contains(part));
                let value = |integer: i8| match () {
                    () if name.contains("norm") => 1.0 + (f32::from(integer) / 4.0).floor() / 128.0,
                    () => f32::from(integer) / if small { 1024.0 } else { 512.0 },
                };
                Tensor { values: integers.into_iter().map(value).collect(), name, shape }
            })
            .collect();
        Self { config, tensors }
    }

    /// The type of the weights of training.
    pub(crate) fn ty(&self) -> TensorType {
        match self.config["torch_dtype"].as_str() {
            Some("bfloat16") => TensorType::BF16,
            Some("float16") => TensorType::F16,
            _ => TensorType::F32,
        }
    }

    /// Writes the model and answers where; `name` must be unique in the test program.
    pub(crate) fn write(&self, name: &str, form: Form) -> std::path::PathBuf {
        let path = directory(name);
        match form {
            Form::Online | Form::AutoBitLinear | Form::BitLinear => {
                self.write_directory(&path, form);
                path
            }
            _ => {
                let path = path.join("model.gguf");
                fs::write(&path, self.gguf(form).finish()).unwrap();
                path
            }
        }
    }

    fn write_directory(&self, path: &Path, form: Form) {
        let (class, mode) = match form {
            Form::Online => ("autobitlinear", "online"),
            Form::AutoBitLinear => ("autobitlinear", "offline"),
            _ => ("bitlinear", "offline"),
        };
        let mut config = self.config.clone();
        config["quantization_config"] =
            json!({"quant_method": "bitnet", "linear_class": class, "quantization_mode": mode});
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        let mut tensors = Vec::new();
        for tensor in &self.tensors {
            if form == Form::Online || !tensor.is_projection() {
                let (dtype, bytes) = (dtype(self.ty()), to_bytes(self.ty(), &tensor.values));
                tensors.push((tensor.name.clone(), dtype, tensor.shape.clone(), bytes));
                continue;
            }
            let (codes, scale) = tensor.ternary(self.ty());
            let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
            let mut packed = vec![0_u8; rows / 4 * columns];
            for (place, code) in codes.iter().enumerate() {
                let (row, column) = (place / columns, place % columns);
                let (part, row) = (row / (rows / 4), row % (rows / 4));
                packed[row * columns + column] |= ((code + 1) as u8) << (2 * part);
            }
            tensors.push((tensor.name.clone(), Dtype::U8, vec![rows / 4, columns], packed));
            let name = format!("{}_scale", tensor.name);
            let (ty, scale) =
                if form == Form::BitLinear { (TensorType::F32, 1.0 / scale) } else { (self.ty(), scale) };
            tensors.push((name, dtype(ty), vec![1], to_bytes(ty, &[scale])));
        }
        let views = (tensors.iter()).map(|(name, dtype, shape, bytes)| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        fs::write(path.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// A GGUF file.
    pub(crate) fn gguf(&self, form: Form) -> GgufWriter {
        const ARCHITECTURE: &str = "bitnet-b1.58";
        let mut writer =
            GgufWriter::new().set("general.architecture", Value::String(ARCHITECTURE.to_owned()));
        for (key, name) in [
            ("embedding_length", "hidden_size"),
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("feed_forward_length", "intermediate_size"),
            ("context_length", "max_position_embeddings"),
            ("vocab_size", "vocab_size"),
        ] {
            let size = self.config[name].as_u64().unwrap() as u32;
            writer = writer.set(&format!("{ARCHITECTURE}.{key}"), Value::U32(size));
        }
        for (key, name) in
            [("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("rope.freq_base", "rope_theta")]
        {
            let number = self.config[name].as_f64().unwrap() as f32;
            writer = writer.set(&format!("{ARCHITECTURE}.{key}"), Value::F32(number));
        }
        for tensor in &self.tensors {
            let name = (NAMES.iter()).fold(tensor.name.clone(), |name, (from, to)| name.replace(from, to));
            let put = |writer: GgufWriter, ty, bytes: &[u8]| writer.tensor(&name, &tensor.shape, ty, bytes);
            if tensor.shape.len() == 1 {
                writer = writer.f32_tensor(&name, &tensor.shape, &tensor.values);
                continue;
            }
            let (codes, scale) = tensor.ternary(self.ty());
            let numbers = |scale: f32| Vec::from_iter(codes.iter().map(|&code| f32::from(code) * scale));
            writer = match form {
                _ if !tensor.is_projection() => put(writer, self.ty(), &to_bytes(self.ty(), &tensor.values)),
                Form::Gguf(ty @ (TensorType::I2_S | TensorType::TQ1_0 | TensorType::TQ2_0)) => {
                    put(writer, ty, &pack(ty, &codes, scale))
                }
                Form::Gguf(ty) => put(writer, ty, &to_bytes(ty, &tensor.values)),
                Form::GgufNumbers(ty) => put(writer, ty, &to_bytes(ty, &numbers(scale))),
                Form::GgufScales(ty) => {
                    let scale_name = name.replace(".weight", ".scale");
                    put(writer, ty, &to_bytes(ty, &numbers(1.0))).f32_tensor(&scale_name, &[1], &[scale])
                }
                _ => panic!("{form:?} is no GGUF file"),
            };
        }
        writer
    }
}

impl Tensor {
    fn is_projection(&self) -> bool {
        self.shape.len() == 2 && PROJECTIONS.iter().any(|name| self.name.contains(name))
    }

    /// Codes and scale as the training has them: the mean magnitude, in the type of the weights.
    fn ternary(&self, ty: TensorType) -> (Vec<i8>, f32) {
        let sum: f64 = self.values.iter().map(|value| f64::from(value.abs())).sum();
        let inverse = 1.0 / (sum / self.values.len() as f64) as f32;
        let codes = self.values.iter().map(|value| (value * inverse).round().clamp(-1.0, 1.0) as i8);
        let scale = 1.0 / inverse;
        let scale = match ty {
            TensorType::F16 => f16::from_f32(scale).to_f32(),
            TensorType::BF16 => bf16::from_f32(scale).to_f32(),
            _ => scale,
        };
        (codes.collect(), scale)
    }
}

/// The highest bytes of SplitMix64.
fn splitmix(seed: u64, count: usize) -> Vec<i8> {
    let number = |i: usize| {
        let z = (seed << 32).wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 56) as u8 as i8
    };
    (0..count).map(number).collect()
}

fn dtype(ty: TensorType) -> Dtype {
    match ty {
        TensorType::F16 => Dtype::F16,
        TensorType::BF16 => Dtype::BF16,
        _ => Dtype::F32,
    }
}

pub(crate) fn to_bytes(ty: TensorType, values: &[f32]) -> Vec<u8> {
    let values = values.iter();
    match ty {
        TensorType::F16 => values.flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        TensorType::BF16 => values.flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// Blocks of a ternary type.
pub(crate) fn pack(ty: TensorType, codes: &[i8], scale: f32) -> Vec<u8> {
    let digit = |code: i8| (code + 1) as u8;
    let mut bytes = Vec::new();
    for block in codes.chunks(ty.block_elements()) {
        match ty {
            TensorType::I2_S => {
                bytes.extend(
                    (0..32).map(|m| (0..4).fold(0, |byte, n| byte | digit(block[32 * n + m]) << (6 - 2 * n))),
                );
                continue;
            }
            TensorType::TQ2_0 => {
                for half in block.chunks(128) {
                    bytes.extend(
                        (0..32).map(|m| (0..4).fold(0, |byte, n| byte | digit(half[32 * n + m]) << (2 * n))),
                    );
                }
            }
            _ => {
                let mut group = |start: usize, width: usize, trits: usize| {
                    for m in 0..width {
                        let number = (0..5).fold(0_u32, |number, n| {
                            let trit = if n < trits { digit(block[start + width * n + m]) } else { 0 };
                            3 * number + u32::from(trit)
                        });
                        bytes.push((256 * number).div_ceil(243) as u8);
                    }
                };
                group(0, 32, 5);
                group(160, 16, 5);
                group(240, 4, 4);
            }
        }
        bytes.extend(f16::from_f32(scale).to_le_bytes());
    }
    if ty == TensorType::I2_S {
        bytes.extend(scale.to_le_bytes());
        bytes.extend([0; 28]);
    }
    bytes
}
