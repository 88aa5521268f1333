//! candle's quantised Llama with our attention in it, beside candle's own.
//!
//! `cargo run --release --features candle --example embed_candle -- --model models/SmolLM2-135M-Instruct.Q4_1.gguf`
//!
//! Ours is [`Attention`]: a kernel with its cache behind candle's interface for operations of one's own, `CustomOp3`. All else is
//! candle's: file, tokenizer, weights, products, norms, RoPE. Its `quantized_llama::ModelWeights` keeps the layers to itself,
//! so [`Llama`] puts the same public parts together in the same order; the unchanged `ModelWeights` runs beside it, to be
//! compared with. Two things are not as there: q, k and v stay as they come, `[tokens, heads, head_dim]`, where candle brings
//! heads to the front; and rows of q and k are put back into the order before the conversion to GGUF (halves turn together
//! instead of neighbours), because that is the order of channels in a profile.
//!
//! Weights are unpacked to f32 (by candle, `CANDLE_DEQUANTIZE_ALL`), its fastest form for prompts, unless `--linear packed`
//! says otherwise. Packed, candle rounds inputs of linear layers to 8 bits, which makes large differences of the smallest: there
//! the tokens depend on the order of a sum, of our own dense attention too (`DELTALLM_SIMD`).

use std::{path::Path, sync::Mutex};

use anyhow::{Context, anyhow};
use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Error, Layout, Module, Result, Shape, Tensor, bail};
use candle_nn::{Embedding, ops::silu, rotary_emb::rope_thd};
use candle_transformers::models::quantized_llama::MAX_SEQ_LEN;
use candle_transformers::quantized_nn::RmsNorm;
use clap::Parser;
use deltallm::{AttentionKernel, HeadsView, HeadsViewMut};

mod engines;

use engines::{Candle, EmbedArgs, Engine, Kernels, most_probable};

/// A layer's attention with its cache. candle may only share it, hence the lock.
struct Attention(Mutex<Box<dyn AttentionKernel>>);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "deltallm"
    }

    /// q `[1, tokens, heads, head_dim]`, k and v `[1, tokens, kv_heads, head_dim]`; the result is like q.
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        of_q: &Layout,
        k: &CpuStorage,
        of_k: &Layout,
        v: &CpuStorage,
        of_v: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (view(q, of_q)?, view(k, of_k)?, view(v, of_v)?);
        let mut out = vec![0.0; of_q.shape().elem_count()];
        let to = HeadsViewMut::new(&mut out, [q.tokens(), q.heads(), q.head_dim()]).map_err(Error::wrap)?;
        let Ok(mut kernel) = self.0.lock() else { bail!("expected a kernel that has not panicked") };
        kernel.forward_heads(q, k, v, to).map_err(Error::wrap)?;
        Ok((CpuStorage::F32(out), of_q.shape().clone()))
    }
}

/// candle's memory as it is: tokens and heads may have any strides.
fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<HeadsView<'a>> {
    let (1, tokens, heads, head_dim) = layout.shape().dims4()? else { bail!("expected one sequence") };
    let &[_, token_stride, head_stride, 1] = layout.stride() else { bail!("expected adjacent channels") };
    let data = storage.as_slice::<f32>()?.get(layout.start_offset()..).unwrap_or_default();
    HeadsView::strided(data, [tokens, heads, head_dim], token_stride, head_stride).map_err(Error::wrap)
}

struct Layer {
    /// Before attention, and before the gated part.
    norms: [RmsNorm; 2],
    qkv: [QMatMul; 3],
    attention: Attention,
    output: QMatMul,
    /// Gate, up and down.
    gated: [QMatMul; 3],
}

/// candle's parts with our attention.
struct Llama {
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: QMatMul,
    /// Cosines and sines, `[MAX_SEQ_LEN, head_dim / 2]`.
    turns: [Tensor; 2],
    /// Of queries; of keys and values.
    heads: [usize; 2],
}

impl Llama {
    fn open(path: &Path, kernels: &Kernels) -> anyhow::Result<Self> {
        let Candle { file, content, .. } = &mut Candle::open(path)?;
        let value = |key: &str| content.metadata.get(key).with_context(|| format!("{key} is missing"));
        let number = |key: &str| anyhow::Ok(value(&format!("llama.{key}"))?.to_u32()? as usize);
        let (width, size) = (number("embedding_length")?, number("rope.dimension_count")?);
        let base = value("llama.rope.freq_base").map_or(Ok(1e4), |base| base.to_f32())?;
        let eps = f64::from(value("llama.attention.layer_norm_rms_epsilon")?.to_f32()?);
        let mut tensor = |name: &str| content.tensor(file, &format!("{name}.weight"), &Device::Cpu);
        let embedding = tensor("token_embd")?;
        let norm = RmsNorm::from_qtensor(tensor("output_norm")?, eps)?;
        let head = QMatMul::from_qtensor(tensor("output").or_else(|_| tensor("token_embd"))?)?;
        let mut layers = Vec::new();
        for layer in 0..number("block_count")? {
            let mut norm = |name: &str| RmsNorm::from_qtensor(tensor(&format!("blk.{layer}.{name}"))?, eps);
            let norms = [norm("attn_norm")?, norm("ffn_norm")?];
            let mut linear = |name: &str| {
                let weight = tensor(&format!("blk.{layer}.{name}"))?;
                let rotated = matches!(name, "attn_q" | "attn_k");
                QMatMul::from_qtensor(if rotated { halves(weight, size)? } else { weight })
            };
            layers.push(Layer {
                norms,
                qkv: [linear("attn_q")?, linear("attn_k")?, linear("attn_v")?],
                attention: Attention(Mutex::new(kernels.make(layer)?)),
                output: linear("attn_output")?,
                gated: [linear("ffn_gate")?, linear("ffn_up")?, linear("ffn_down")?],
            });
        }
        let frequencies = (0..size).step_by(2).map(|i| 1.0 / base.powf(i as f32 / size as f32));
        let frequencies = Tensor::from_iter(frequencies, &Device::Cpu)?.unsqueeze(0)?;
        let positions = Tensor::arange(0, MAX_SEQ_LEN as u32, &Device::Cpu)?.to_dtype(DType::F32)?;
        let angles = positions.unsqueeze(1)?.matmul(&frequencies)?;
        let heads = [number("attention.head_count")?, number("attention.head_count_kv")?];
        let embedding = Embedding::new(embedding.dequantize(&Device::Cpu)?, width);
        Ok(Self { embedding, layers, norm, head, turns: [angles.cos()?, angles.sin()?], heads })
    }

    /// Logits of the last token.
    fn forward(&self, tokens: &[u32], position: usize) -> Result<Vec<f32>> {
        let (n, [heads, kv_heads]) = (tokens.len(), self.heads);
        let [cos, sin] = self.turns.each_ref().map(|table| table.narrow(0, position, n));
        let (cos, sin) = (cos?, sin?);
        let mut x = self.embedding.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?)?;
        for Layer { norms: [norm, mlp_norm], qkv: [q, k, v], attention, output, gated: [gate, up, down] } in
            &self.layers
        {
            let input = norm.forward(&x)?;
            let q = rope_thd(&q.forward(&input)?.reshape((1, n, heads, ()))?, &cos, &sin)?;
            let k = rope_thd(&k.forward(&input)?.reshape((1, n, kv_heads, ()))?, &cos, &sin)?;
            let v = v.forward(&input)?.reshape((1, n, kv_heads, ()))?;
            let attended = q.apply_op3_no_bwd(&k, &v, attention)?.reshape((1, n, ()))?;
            x = (output.forward(&attended)? + x)?;
            let input = mlp_norm.forward(&x)?;
            x = (down.forward(&(silu(&gate.forward(&input)?)? * up.forward(&input)?)?)? + x)?;
        }
        let last = self.norm.forward(&x)?.narrow(1, n - 1, 1)?.contiguous()?;
        self.head.forward(&last)?.flatten_all()?.to_vec1()
    }
}

/// Rows of heads in which neighbours turn together, put so that halves do.
fn halves(weight: QTensor, size: usize) -> Result<QTensor> {
    let (rows, columns) = weight.shape().dims2()?;
    let data = weight.data()?;
    let row = |row: usize| {
        let (head, channel) = (row / size * size, row % size);
        &data[(head + channel % (size / 2) * 2 + channel / (size / 2)) * data.len() / rows..]
            [..data.len() / rows]
    };
    let moved = (0..rows).map(row).collect::<Vec<_>>().concat();
    QTensor::new(QStorage::from_data(moved.into(), &Device::Cpu, weight.dtype())?, (rows, columns))
}

impl Engine for Llama {
    fn begin(&mut self, tokens: usize) -> anyhow::Result<()> {
        for Attention(kernel) in self.layers.iter_mut().map(|layer| &mut layer.attention) {
            let kernel = kernel.get_mut().map_err(|_| anyhow!("expected a kernel that has not panicked"))?;
            kernel.truncate(0)?;
            kernel.begin_prompt(tokens);
        }
        Ok(())
    }

    fn next(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<u32> {
        Ok(most_probable(&self.forward(tokens, position)?))
    }
}

fn main() -> anyhow::Result<()> {
    let args = EmbedArgs::parse();
    let (path, kernels) = args.start()?;
    let with = |kernels: Kernels| Ok(Box::new(Llama::open(path, &kernels)?) as Box<dyn Engine>);
    args.compare(&Candle::open(path)?, kernels, &with)
}
