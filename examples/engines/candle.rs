//! candle's quantised Llama as it is.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use candle_core::quantized::{gguf_file::Content, tokenizer::TokenizerFromGguf};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tokenizers::Tokenizer;

use super::embedding::Original;
use super::{Engine, most_probable};

/// A GGUF file as candle reads it.
pub(crate) struct Candle {
    /// The file.
    pub(crate) file: File,
    /// Its metadata, and where its tensors are.
    pub(crate) content: Content,
    tokenizer: Tokenizer,
    path: PathBuf,
}

impl Candle {
    /// Opens a file and makes the tokenizer that is in it.
    ///
    /// # Errors
    /// candle's.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let expected = || format!("--model: expected a GGUF file of a Llama, got {}", path.display());
        let mut file = File::open(path).with_context(expected)?;
        let content = Content::read(&mut file).with_context(expected)?;
        let tokenizer = Tokenizer::from_gguf(&content)?;
        Ok(Self { file, content, tokenizer, path: path.to_owned() })
    }
}

impl Original for Candle {
    fn name(&self) -> &'static str {
        "candle"
    }

    fn engine(&self) -> anyhow::Result<Box<dyn Engine>> {
        let Self { mut file, content, .. } = Self::open(&self.path)?;
        Ok(Box::new(Llama(ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)))
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, true).map_err(|error| anyhow!(error))?.get_ids().to_vec())
    }

    fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.tokenizer.decode(tokens, true).map_err(|error| anyhow!(error))
    }

    fn end(&self) -> Option<u32> {
        self.content.metadata.get("tokenizer.ggml.eos_token_id")?.to_u32().ok()
    }
}

struct Llama(ModelWeights);

impl Engine for Llama {
    fn begin(&mut self, _: usize) -> anyhow::Result<()> {
        self.0.clear_kv_cache();
        Ok(())
    }

    fn next(&mut self, tokens: &[u32], position: usize) -> anyhow::Result<u32> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(most_probable(&self.0.forward(&tokens, position)?.flatten_all()?.to_vec1()?))
    }
}
