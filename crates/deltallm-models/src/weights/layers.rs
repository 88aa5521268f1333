//! The weights of a model in the order of its graph.

use ndarray::Array1;

use crate::{LayerTensor, Linear, Matrix, ModelConfig, ModelError, ModelFile, TensorId};

/// The weights of one layer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LayerWeights {
    /// RMSNorm before attention, `[hidden_size]`.
    pub attention_norm: Array1<f32>,
    /// `[heads * head_dim, hidden_size]`, half-split RoPE order.
    pub query: Linear,
    /// RMSNorm of each head of queries, `[head_dim]`, in families that have it.
    pub query_norm: Option<Array1<f32>>,
    /// `[kv_heads * head_dim, hidden_size]`, half-split RoPE order.
    pub key: Linear,
    /// RMSNorm of each head of keys, `[head_dim]`, in families that have it.
    pub key_norm: Option<Array1<f32>>,
    /// `[kv_heads * head_dim, hidden_size]`.
    pub value: Linear,
    /// RMSNorm between attention and its output projection, `[heads * head_dim]`, in BitNet models.
    pub attention_sub_norm: Option<Array1<f32>>,
    /// `[hidden_size, heads * head_dim]`.
    pub attention_output: Linear,
    /// RMSNorm behind attention, before the residual sum, `[hidden_size]`, in Gemma models.
    pub attention_post_norm: Option<Array1<f32>>,
    /// RMSNorm before the MLP, `[hidden_size]`.
    pub mlp_norm: Array1<f32>,
    /// `[intermediate_size, hidden_size]`.
    pub gate: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub up: Linear,
    /// RMSNorm before the MLP's output projection, `[intermediate_size]`, in BitNet models.
    pub mlp_sub_norm: Option<Array1<f32>>,
    /// `[hidden_size, intermediate_size]`.
    pub down: Linear,
    /// RMSNorm behind the MLP, before the residual sum, `[hidden_size]`, in Gemma models.
    pub mlp_post_norm: Option<Array1<f32>>,
}

/// All weights of a model.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelWeights {
    /// `[vocab_size, hidden_size]`.
    pub token_embedding: Matrix,
    /// The layers in order.
    pub layers: Vec<LayerWeights>,
    /// RMSNorm before the head, `[hidden_size]`.
    pub final_norm: Array1<f32>,
    /// `[vocab_size, hidden_size]`, or `None` where the embedding serves.
    pub head: Option<Matrix>,
}

impl ModelWeights {
    /// Reads all weights.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn load(file: &ModelFile, config: &ModelConfig) -> Result<Self, ModelError> {
        Self::load_with(file, config, |_, _| {})
    }

    /// [`load`](Self::load) that tells `progress` the steps done and their total: one for each layer and one for each end.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn load_with(
        file: &ModelFile,
        config: &ModelConfig,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, ModelError> {
        config.validate().map_err(|source| file.config_error(source))?;
        let steps = config.layers + 2;
        progress(0, steps);
        let token_embedding = file.weight(config, TensorId::TokenEmbedding)?;
        progress(1, steps);
        // Not reserved from the configuration's number, which no tensor has confirmed yet.
        let mut layers = Vec::new();
        for layer in 0..config.layers {
            layers.push(LayerWeights::load(file, config, layer)?);
            progress(layer + 2, steps);
        }
        let final_norm = file.norm(config, TensorId::FinalNorm)?;
        let head = match config.tie_embeddings {
            true => {
                file.refuse_other_head()?;
                None
            }
            false => Some(file.weight(config, TensorId::Head)?),
        };
        progress(steps, steps);
        Ok(Self { token_embedding, layers, final_norm, head })
    }
}

impl ModelWeights {
    /// Memory of all matrices; norms and biases are left out.
    pub fn bytes(&self) -> usize {
        let ends = [Some(&self.token_embedding), self.head.as_ref()];
        ends.into_iter().flatten().chain(self.matrices_of_layers()).map(Matrix::bytes).sum()
    }

    /// Whether several inputs at once give what each of them gives alone, bit for bit: packed weights do, floats are added up in another order.
    pub fn treats_rows_alike(&self) -> bool {
        let head = self.head.as_ref().unwrap_or(&self.token_embedding);
        self.matrices_of_layers().chain([head]).all(Matrix::is_packed)
    }

    fn matrices_of_layers(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(|layer| {
            let LayerWeights { query, key, value, attention_output, gate, up, down, .. } = layer;
            [query, key, value, attention_output, gate, up, down].map(|linear| &linear.weight)
        })
    }
}

impl LayerWeights {
    /// Reads the weights of layer `layer`, counted from 0.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn load(file: &ModelFile, config: &ModelConfig, layer: usize) -> Result<Self, ModelError> {
        let norm = |tensor| file.norm(config, TensorId::Layer(layer, tensor));
        let some_norm =
            |tensor: LayerTensor| tensor.is_in(config.architecture).then(|| norm(tensor)).transpose();
        let linear = |tensor| file.linear(config, TensorId::Layer(layer, tensor));
        Ok(Self {
            attention_norm: norm(LayerTensor::AttentionNorm)?,
            query: linear(LayerTensor::Query)?,
            query_norm: some_norm(LayerTensor::QueryNorm)?,
            key: linear(LayerTensor::Key)?,
            key_norm: some_norm(LayerTensor::KeyNorm)?,
            value: linear(LayerTensor::Value)?,
            attention_sub_norm: some_norm(LayerTensor::AttentionSubNorm)?,
            attention_output: linear(LayerTensor::AttentionOutput)?,
            attention_post_norm: some_norm(LayerTensor::AttentionPostNorm)?,
            mlp_norm: norm(LayerTensor::MlpNorm)?,
            gate: linear(LayerTensor::Gate)?,
            up: linear(LayerTensor::Up)?,
            mlp_sub_norm: some_norm(LayerTensor::MlpSubNorm)?,
            down: linear(LayerTensor::Down)?,
            mlp_post_norm: some_norm(LayerTensor::MlpPostNorm)?,
        })
    }
}
