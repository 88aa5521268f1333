//! candle-transformers' quantized Llama, on the same file.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};

use deltallm_cli::bench::{Engine, Rival};

/// The model with its cache, which its layers hold.
pub struct Candle {
    weights: ModelWeights,
    /// The model as it was when the prompt ended. Tensors are shared, and decoding makes new ones.
    after_prompt: ModelWeights,
    prompt: usize,
    decoded: usize,
}

/// candle, as it takes part in the rounds.
pub const CANDLE: Rival = Rival {
    name: "candle",
    settings: "candle-transformers, quantized_llama",
    longest: MAX_SEQ_LEN,
    open: |path| Ok(Box::new(Candle::open(path)?)),
};

impl Candle {
    /// Reads a GGUF file.
    ///
    /// # Errors
    /// For a file that cannot be read, or that is not of a Llama.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let expected = || format!("candle: expected a GGUF file of a Llama, got {}", path.display());
        let mut file = File::open(path).with_context(expected)?;
        let content = Content::read(&mut file).with_context(expected)?;
        let weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).with_context(expected)?;
        Ok(Self { after_prompt: weights.clone(), weights, prompt: 0, decoded: 0 })
    }

    fn forward(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<Tensor> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.weights.forward(&input, position)?.squeeze(0)?)
    }
}

impl Engine for Candle {
    fn clear(&mut self) -> anyhow::Result<()> {
        self.weights.clear_kv_cache();
        self.after_prompt.clear_kv_cache();
        (self.prompt, self.decoded) = (0, 0);
        Ok(())
    }

    fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Vec<f32>> {
        let logits = self.forward(prompt, 0)?.to_vec1()?;
        self.after_prompt = self.weights.clone();
        (self.prompt, self.decoded) = (prompt.len(), 0);
        Ok(logits)
    }

    fn decode(&mut self, token: u32) -> anyhow::Result<()> {
        self.forward(&[token], self.prompt + self.decoded)?;
        self.decoded += 1;
        Ok(())
    }

    fn rewind(&mut self) -> anyhow::Result<()> {
        self.weights = self.after_prompt.clone();
        self.decoded = 0;
        Ok(())
    }

    fn cache_bytes(&self) -> Option<usize> {
        None
    }
}
