//! Fields of a `config.json` that change nothing in what the model computes.

use serde_json::Value;

/// By name. `transformers` writes most of them into every file.
const NAMES: &[&str] = &[
    // Where the file comes from, and what else belongs to it.
    "name_or_path",
    "model_name",
    "base_model",
    "datasets",
    "language",
    "license",
    "tokenizer_class",
    "processor_class",
    "auto_map", // the family's own class is what `transformers` uses, and this crate too
    "is_llama_config",
    "inference",
    "task_specific_params",
    "finetuning_task",
    "problem_type",
    "id2label",
    "label2id",
    // The type of the weights, which they say themselves.
    "torch_dtype",
    "dtype",
    "params_dtype",
    "fp16",
    "bf16",
    "use_bfloat16",
    // How the result is computed, or in what form it is given back.
    "use_cache",
    "cache_implementation",
    "attn_implementation",
    "use_flash_attn",
    "use_flash_attention",
    "pretraining_tp",
    "tensor_parallel_size",
    "low_cpu_mem_usage",
    "torchscript",
    "tf_legacy_loss",
    "return_dict",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_past",
    "chunk_size_feed_forward",
    "is_decoder",
    "tie_encoder_decoder",
    // Lengths of training, and of the tokenizer: the context is `max_position_embeddings`.
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    "seq_len",
    "tokenizer_model_max_length",
    // Only training looks at them.
    "initializer_range",
    "initializer_factor",
    "init_std",
    "gradient_checkpointing",
    "use_gradient_checkpointing",
    "router_aux_loss_coef",
    "label_smoothing",
    "loss_type",
    // Of norms with a mean, which the graph does not have.
    "layer_norm_eps",
    "layer_norm_epsilon",
    // Of windows that the family does not have.
    "max_window_layers",
    // How text is generated.
    "max_length",
    "max_new_tokens",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "no_repeat_ngram_size",
    "length_penalty",
    "num_return_sequences",
    "exponential_decay_length_penalty",
    "remove_invalid_values",
    "suppress_tokens",
    "begin_suppress_tokens",
    "prefix",
];

/// By the beginning of the name: what libraries note down for themselves.
const BEGINNINGS: &[&str] = &["_", "transformers", "unsloth"];

/// By the end of the name: tokens with a meaning, which are the tokenizer's; what is dropped in training.
const ENDS: &[&str] =
    &["_token_id", "_token_ids", "_words_ids", "_dropout", "_pdrop", "_dropout_prob", "_layerdrop"];

/// Whether a field changes nothing, whatever it says.
pub(super) fn is_irrelevant(name: &str) -> bool {
    NAMES.contains(&name)
        || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether the value of a field that nobody knows says that something is not there.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}
