//! The decoder graph: tokens in, logits out.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use deltallm_attn::{AttentionKernel, AttentionShape, KernelContext};
use deltallm_simd::{
    Isa,
    tuning::{LEAST_WORK, SPIN_TOKENS},
    weight_order::OrderTrial,
};
use ndarray::{Array2, Ix2, Ix3, s};

use super::{
    batch::{AttentionInput, LogitRows, Sequence, attend, kernels, position, token_ranges, total_tokens},
    checksum::weights_checksum,
    layers::{Rope, Rotations, add, gated_mlp, rms_norm, rms_norm_in_place, scale},
    threads::{in_pool, with_spinning_threads},
    workspace::Workspace,
};
use crate::{ModelConfig, ModelError, ModelFile, ModelWeights, linear::inputs::Inputs};

/// A decoder-only transformer of one of the families in [`Architecture`](crate::Architecture).
///
/// The model is immutable; all state of a conversation lives in the attention kernels, one per layer, that the caller
/// passes in. [`Session`](crate::Session) keeps them, and shares the model. What a call needs for its intermediate results is
/// kept for the next.
///
/// ```
/// use deltallm_attn::{AttentionKernel, KernelSpec};
/// use deltallm_models::{LogitRows, Model, ModelFile};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load(&ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?)?;
/// let (spec, context) = (KernelSpec::default(), model.kernel_context());
/// let layers = 0..model.config().layers;
/// let mut kernels = layers.map(|layer| spec.build(layer, &context)).collect::<Result<Vec<_>, _>>()?;
/// let logits = model.forward(&[1, 2, 3], &mut kernels, LogitRows::All)?;
/// assert_eq!(logits.dim(), (3, model.config().vocab_size));
/// assert_eq!(kernels[0].len(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: ModelWeights,
    rope: Rope,
    /// Of layers with a window, where it is another.
    local_rope: Option<Rope>,
    shape: AttentionShape,
    isa: Isa,
    /// Finds the order in which weights are asked for.
    order: OrderTrial,
    /// As many as there were calls at the same time.
    workspaces: Mutex<Vec<Workspace>>,
    checksum: OnceLock<u32>,
}

impl Model {
    /// Reads a model's weights. The model computes with the instruction set of [the file](ModelFile::with_isa).
    ///
    /// # Errors
    /// [`ModelError`] for parameters or weights that are missing, inconsistent or not finite.
    pub fn load(file: &ModelFile) -> Result<Self, ModelError> {
        Self::load_with(file, |_, _| {})
    }

    /// [`load`](Self::load) that tells `progress` the steps done and their total.
    ///
    /// ```
    /// use deltallm_models::{Model, ModelFile};
    ///
    /// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let model = Model::load_with(&file, |done, total| eprintln!("{done} of {total}"))?;
    /// # Ok::<(), deltallm_models::ModelError>(())
    /// ```
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with(file: &ModelFile, progress: impl FnMut(usize, usize)) -> Result<Self, ModelError> {
        let config = file.config()?;
        let weights = ModelWeights::load_with(file, &config, progress)?;
        let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
        let rope = |rope| Rope::new(rope, config.head_dim).map_err(|source| file.config_error(source));
        let local_rope = config.local_rope.as_ref().map(rope).transpose()?;
        let rope = rope(&config.rope)?;
        Ok(Self {
            config,
            weights,
            rope,
            local_rope,
            shape,
            isa: file.isa(),
            order: OrderTrial::default(),
            workspaces: Mutex::default(),
            checksum: OnceLock::new(),
        })
    }

    /// The model's parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tells these weights, as they are multiplied here, from others of the same shape: fine-tuned ones, other quantisations, another instruction
    /// set. A checksum of what the first, a middle and the last layer make of a made-up input, and of some rows of every matrix.
    pub fn weights_checksum(&self) -> u32 {
        if let Some(sum) = self.checksum.get() {
            return *sum;
        }
        // Before the cell is locked: a thread that waits for others meanwhile may come back here.
        let sum = weights_checksum(&self.config, &self.weights);
        *self.checksum.get_or_init(|| sum)
    }

    /// The instruction set that it computes with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The model's weights.
    pub fn weights(&self) -> &ModelWeights {
        &self.weights
    }

    /// Head counts of every layer, for making attention kernels. Which keys a layer's queries attend to is a matter of its
    /// [mask](ModelConfig::mask).
    pub fn attention_shape(&self) -> AttentionShape {
        self.shape
    }

    /// What attention kernels of this model need besides their settings: its heads, its masks and its instruction set, no limit
    /// on memory, and the threads of the current rayon pool.
    pub fn kernel_context(&self) -> KernelContext {
        let masks: Vec<_> = (0..self.config.layers).map(|layer| self.config.mask(layer)).collect();
        KernelContext::new(self.shape).masks(masks).isa(self.isa)
    }

    /// Runs the next `tokens` through the model. `kernels` holds one attention kernel per layer, each with the same
    /// number of cached tokens; they are extended by `tokens`. Returns logits, `[rows, vocab_size]`. The work is done by the current rayon
    /// pool, which a thread outside of it waits for.
    ///
    /// # Errors
    /// [`ModelError`] for no tokens, a token outside the vocabulary, more tokens than the context holds, a wrong number
    /// of kernels, or a failing kernel. The kernels are then as they were before
    /// ([`undo_step`](AttentionKernel::undo_step)), those of layers that had finished too.
    pub fn forward<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        kernels: &mut [K],
        rows: LogitRows,
    ) -> Result<Array2<f32>, ModelError> {
        self.run(&mut [Sequence { tokens, kernels, rows }], &mut |_| {})
    }

    /// [`forward`](Self::forward), and shows `observer` what every layer's attention is given, layer by layer.
    ///
    /// # Errors
    /// The same.
    pub fn forward_observed<K: AttentionKernel>(
        &self,
        tokens: &[u32],
        kernels: &mut [K],
        rows: LogitRows,
        mut observer: impl FnMut(AttentionInput) + Send,
    ) -> Result<Array2<f32>, ModelError> {
        self.run(&mut [Sequence { tokens, kernels, rows }], &mut observer)
    }

    /// [`forward`](Self::forward) for several sequences at once, which share one pass over the weights. Returns the
    /// logits of each.
    ///
    /// # Errors
    /// The same; no sequence has moved then.
    pub fn forward_batch<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
    ) -> Result<Vec<Array2<f32>>, ModelError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.run(batch, &mut |_| {})?;
        let mut start = 0;
        let parts = batch.iter().map(|sequence| {
            let rows = start..start + sequence.rows.of(sequence.tokens.len());
            start = rows.end;
            logits.slice(s![rows, ..]).to_owned()
        });
        Ok(parts.collect())
    }

    /// Returns the wanted logits of all sequences, one after the other.
    fn run<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
        observer: &mut (dyn FnMut(AttentionInput) + Send),
    ) -> Result<Array2<f32>, ModelError> {
        batch.iter().try_for_each(|sequence| self.check(sequence.tokens, sequence.kernels))?;
        in_pool(|| self.run_checked(batch, observer))
    }

    fn run_checked<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
        observer: &mut (dyn FnMut(AttentionInput) + Send),
    ) -> Result<Array2<f32>, ModelError> {
        let mut workspace = self.workspaces().pop().unwrap_or_default();
        workspace.positions.clear();
        workspace.positions.extend(batch.iter().map(|sequence| position(sequence.kernels)));
        let order = self.order.order();
        workspace.rounded.order = order;
        // One token is a pass over all weights.
        let start = (self.order.is_open() && total_tokens(batch) == 1).then(Instant::now);
        let small_steps = total_tokens(batch) <= SPIN_TOKENS && self.has_shared_steps();
        kernels(batch).for_each(K::begin_step);
        let mut pass = || {
            self.decoder(batch, observer, &mut workspace)?;
            Ok(self.head(batch, &mut workspace))
        };
        let logits = if small_steps { with_spinning_threads(pass) } else { pass() };
        if let (Some(start), Ok(logits)) = (start, &logits)
            && !logits.is_empty()
        {
            self.order.add(order, start.elapsed());
        }
        if logits.is_ok() {
            kernels(batch).for_each(K::commit_step);
        } else {
            // Layers before the failing one have the tokens already. No cache is shorter, so this cannot fail.
            for (sequence, position) in batch.iter_mut().zip(&workspace.positions) {
                for kernel in sequence.kernels.iter_mut() {
                    let _ = kernel.undo_step(*position);
                }
            }
        }
        self.workspaces().push(workspace);
        logits
    }

    /// Whether a token's products are large enough for threads to share.
    fn has_shared_steps(&self) -> bool {
        self.config.hidden_size * self.config.intermediate_size >= 2 * LEAST_WORK
    }

    /// Memory of calls that have ended.
    fn workspaces(&self) -> MutexGuard<'_, Vec<Workspace>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the arguments of `forward`.
    pub(crate) fn check<K: AttentionKernel>(&self, tokens: &[u32], kernels: &[K]) -> Result<(), ModelError> {
        let (layers, vocab_size) = (self.config.layers, self.config.vocab_size);
        if kernels.len() != layers {
            return Err(ModelError::KernelCount { expected: layers, got: kernels.len() });
        }
        let position = position(kernels);
        if let Some((layer, kernel)) = kernels.iter().enumerate().find(|(_, kernel)| kernel.len() != position)
        {
            return Err(ModelError::KernelLength { layer, expected: position, got: kernel.len() });
        }
        if tokens.is_empty() {
            return Err(ModelError::NoTokens);
        }
        if let Some(&id) = tokens.iter().find(|id| **id as usize >= vocab_size) {
            return Err(ModelError::TokenOutOfRange { vocab_size, id });
        }
        // A kernel that is not ours may say that it holds anything.
        let (context_length, needed) = (self.config.context_length, position.saturating_add(tokens.len()));
        if needed > context_length {
            return Err(ModelError::ContextFull { context_length, got: needed });
        }
        Ok(())
    }

    /// Embedding and all layers. Leaves the residual stream of all sequences, one after the other, in the workspace.
    fn decoder<K: AttentionKernel>(
        &self,
        batch: &mut [Sequence<K>],
        observer: &mut dyn FnMut(AttentionInput),
        workspace: &mut Workspace,
    ) -> Result<(), ModelError> {
        let Workspace {
            positions,
            rotations,
            local_rotations,
            residual,
            normed,
            q,
            k,
            v,
            attended,
            gate,
            up,
            update,
            rounded,
        } = workspace;
        let ModelConfig { hidden_size, heads, kv_heads, head_dim, norm_eps, .. } = self.config;
        let positions = || {
            let firsts = positions.iter().copied();
            token_ranges(batch).zip(firsts).flat_map(|(tokens, first)| first..first + tokens.len())
        };
        self.rope.rotations_into(positions(), rotations);
        if let Some(rope) = &self.local_rope {
            rope.rotations_into(positions(), local_rotations);
        }
        let tokens = total_tokens(batch);
        let stream = Ix2(tokens, hidden_size);
        let (of_queries, of_keys) = (Ix3(tokens, heads, head_dim), Ix3(tokens, kv_heads, head_dim));
        let (query_rows, key_rows) = (Ix2(tokens, heads * head_dim), Ix2(tokens, kv_heads * head_dim));
        let mut x = residual.array(stream);
        let ids = batch.iter().flat_map(|s| s.tokens).map(|id| *id as usize);
        self.weights.token_embedding.rows_into(ids, x.view_mut());
        if self.config.architecture.scales_embeddings() {
            scale(x.view_mut(), (hidden_size as f32).sqrt());
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let mut input = normed.array(stream);
            rms_norm(&x.view(), &layer.attention_norm, norm_eps, input.view_mut());
            let mut inputs = Inputs::new(input.view(), rounded);
            layer.query.apply_into(&mut inputs, q.array(query_rows));
            layer.key.apply_into(&mut inputs, k.array(key_rows));
            layer.value.apply_into(&mut inputs, v.array(key_rows));
            if let Some(norm) = &layer.query_norm {
                rms_norm_in_place(q.array(Ix2(tokens * heads, head_dim)), norm, norm_eps);
            }
            if let Some(norm) = &layer.key_norm {
                rms_norm_in_place(k.array(Ix2(tokens * kv_heads, head_dim)), norm, norm_eps);
            }
            if let Some(rotations) = self.rotations_of(index, rotations, local_rotations) {
                rotations.apply(q.array(of_queries));
                rotations.apply(k.array(of_keys));
            }
            if let Some(score_scale) = self.config.score_scale {
                // Kernels divide by the square root of the head size.
                scale(q.array(query_rows), score_scale * (head_dim as f32).sqrt());
            }
            let (q, k, v) = (q.array(of_queries), k.array(of_keys), v.array(of_keys));
            let (residual, q, k, v) = (x.view(), q.view(), k.view(), v.view());
            observer(AttentionInput { layer: index, residual, q, k, v });
            attend(batch, index, [q, k, v], attended.array(of_queries))
                .map_err(|source| ModelError::Attention { layer: index, source })?;
            let mut attended = attended.array(query_rows);
            if let Some(norm) = &layer.attention_sub_norm {
                rms_norm_in_place(attended.view_mut(), norm, norm_eps);
            }
            layer
                .attention_output
                .apply_into(&mut Inputs::new(attended.view(), rounded), update.array(stream));
            if let Some(norm) = &layer.attention_post_norm {
                rms_norm_in_place(update.array(stream), norm, norm_eps);
            }
            add(x.view_mut(), &update.array(stream).view());
            let mut input = normed.array(stream);
            rms_norm(&x.view(), &layer.mlp_norm, norm_eps, input.view_mut());
            gated_mlp(
                self.isa,
                &self.config,
                layer,
                &input.view(),
                (gate, up, rounded),
                update.array(stream),
            );
            if let Some(norm) = &layer.mlp_post_norm {
                rms_norm_in_place(update.array(stream), norm, norm_eps);
            }
            add(x.view_mut(), &update.array(stream).view());
        }
        Ok(())
    }

    /// The rotations of a layer, if it rotates.
    fn rotations_of<'a>(
        &self,
        layer: usize,
        global: &'a Rotations,
        local: &'a Rotations,
    ) -> Option<&'a Rotations> {
        if self.config.unrotated_layers.contains(layer) {
            return None;
        }
        let is_local = self.local_rope.is_some() && self.config.local_layers.contains(layer);
        Some(if is_local { local } else { global })
    }

    /// Final norm and output projection of the tokens whose logits are wanted: logits `[rows, vocab_size]`.
    fn head<K>(&self, batch: &[Sequence<K>], workspace: &mut Workspace) -> Array2<f32> {
        let hidden_size = self.config.hidden_size;
        let x = workspace.residual.array(Ix2(total_tokens(batch), hidden_size));
        let wanted = || {
            batch.iter().zip(token_ranges(batch)).flat_map(|(sequence, tokens)| {
                let rows = sequence.rows.of(tokens.len());
                tokens.end - rows..tokens.end
            })
        };
        let mut normed = workspace.normed.array(Ix2(wanted().count(), hidden_size));
        for (token, mut row) in wanted().zip(normed.outer_iter_mut()) {
            row.assign(&x.row(token));
        }
        rms_norm_in_place(normed.view_mut(), &self.weights.final_norm, self.config.norm_eps);
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.token_embedding);
        let mut logits = head.apply_inputs(&mut Inputs::new(normed.view(), &mut workspace.rounded));
        if let Some(cap) = self.config.logit_softcap {
            logits.par_mapv_inplace(|logit| cap * (logit / cap).tanh());
        }
        logits
    }
}
