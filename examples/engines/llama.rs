//! candle's quantised Llama with our attention in it.
//!
//! Ours is [`Attention`]: a kernel with its cache behind candle's interface for operations of one's own, `CustomOp3`. All else is
//! candle's: file, weights, products, norms, RoPE. Its `quantized_llama::ModelWeights` keeps the layers to itself,
//! so [`Llama`] puts the same public parts together in the same order. Two things are not as there: q, k and v stay as they
//! come, `[tokens, heads, head_dim]`, where candle brings heads to the front; and rows of q and k are put back into the order
//! before the conversion to GGUF (halves turn together instead of neighbours), because that is the order of channels in a
//! profile.

use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, anyhow};
use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp3, DType, Device, Error, Layout, Module, Result, Shape, Tensor, bail};
use candle_nn::{Embedding, ops::silu, rotary_emb::rope_thd};
use candle_transformers::models::quantized_llama::MAX_SEQ_LEN;
use candle_transformers::quantized_nn::RmsNorm;
use deltallm::{AttentionKernel, HeadsView, HeadsViewMut, SparsityStats};

use super::{Candle, Engine, Kernels, most_probable};

/// A layer's attention with its cache. candle may only share it, hence the lock.
pub(crate) struct Attention(Mutex<Box<dyn AttentionKernel>>);

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

impl Attention {
    /// The kernel, where nothing shares it.
    fn kernel(&mut self) -> anyhow::Result<&mut dyn AttentionKernel> {
        let kernel = self.0.get_mut().map_err(|_| anyhow!("expected a kernel that has not panicked"))?;
        Ok(kernel.as_mut())
    }
}

/// candle's memory as it is, `[1, tokens, heads, head_dim]`: tokens and heads may have any strides.
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

/// What the attention of a layer is given: the layer's number, q, k and v, `[1, tokens, heads, head_dim]`, and the residual
/// stream that its output is added to, `[1, tokens, hidden_size]`.
pub(crate) type Look<'a> = dyn FnMut(usize, [&Tensor; 3], &Tensor) -> anyhow::Result<()> + 'a;

/// candle's parts with our attention.
pub(crate) struct Llama {
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
    /// Reads a file.
    ///
    /// # Errors
    /// candle's, and what refuses the settings of a kernel.
    pub(crate) fn open(path: &Path, kernels: &Kernels) -> anyhow::Result<Self> {
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

    /// Replaces every layer's kernel with one whose cache is empty.
    ///
    /// # Errors
    /// What refuses the settings of a kernel.
    pub(crate) fn set_kernels(&mut self, kernels: &Kernels) -> anyhow::Result<()> {
        for (number, layer) in self.layers.iter_mut().enumerate() {
            layer.attention = Attention(Mutex::new(kernels.make(number)?));
        }
        Ok(())
    }

    /// What every layer's kernel has counted.
    ///
    /// # Errors
    /// After a panic.
    pub(crate) fn stats(&mut self) -> anyhow::Result<Vec<SparsityStats>> {
        self.layers.iter_mut().map(|layer| Ok(layer.attention.kernel()?.stats())).collect()
    }

    /// Logits of the last `rows` tokens, `[rows, vocab_size]`; `look` sees what attention is given.
    ///
    /// # Errors
    /// candle's, and those of the kernels and of `look`.
    pub(crate) fn forward(
        &self,
        tokens: &[u32],
        position: usize,
        rows: usize,
        look: &mut Look,
    ) -> anyhow::Result<Tensor> {
        let (n, [heads, kv_heads]) = (tokens.len(), self.heads);
        let [cos, sin] = self.turns.each_ref().map(|table| table.narrow(0, position, n));
        let (cos, sin) = (cos?, sin?);
        let mut x = self.embedding.forward(&Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?)?;
        for (number, layer) in self.layers.iter().enumerate() {
            let Layer { norms: [norm, mlp_norm], qkv: [q, k, v], attention, output, gated: [gate, up, down] } =
                layer;
            let input = norm.forward(&x)?;
            let q = rope_thd(&q.forward(&input)?.reshape((1, n, heads, ()))?, &cos, &sin)?;
            let k = rope_thd(&k.forward(&input)?.reshape((1, n, kv_heads, ()))?, &cos, &sin)?;
            let v = v.forward(&input)?.reshape((1, n, kv_heads, ()))?;
            look(number, [&q, &k, &v], &x)?;
            let attended = q.apply_op3_no_bwd(&k, &v, attention)?.reshape((1, n, ()))?;
            x = (output.forward(&attended)? + x)?;
            let input = mlp_norm.forward(&x)?;
            x = (down.forward(&(silu(&gate.forward(&input)?)? * up.forward(&input)?)?)? + x)?;
        }
        let last = self.norm.forward(&x)?.narrow(1, n - rows, rows)?.contiguous()?;
        Ok(self.head.forward(&last)?.squeeze(0)?)
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
        for layer in &mut self.layers {
            let kernel = layer.attention.kernel()?;
            kernel.truncate(0)?;
            kernel.begin_prompt(tokens);
        }
        Ok(())
    }

    fn next(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<u32> {
        let logits = self.forward(tokens, position, 1, &mut |_, _, _| Ok(()))?;
        Ok(most_probable(&logits.flatten_all()?.to_vec1()?))
    }
}
