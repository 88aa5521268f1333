//! The errors of this crate.

use std::path::PathBuf;

use deltallm_core::internal::{message, quoted};

use crate::files::config::ConfigError;
use crate::quant::QuantError;

/// Why a model could not be opened, read or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file system refused.
    #[error("{}: {source}", message(file.display()))]
    Io {
        /// File or directory that was being read.
        file: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The path is neither a GGUF file, a safetensors file nor a model directory.
    #[error(
        "{}: not a model: expected a GGUF file, a .safetensors file or a directory holding config.json and \
         safetensors files, got a file that starts with {start:02x?}",
        message(file.display())
    )]
    UnknownFormat {
        /// The path as given.
        file: PathBuf,
        /// The first bytes of the file, at most four.
        start: Vec<u8>,
    },
    /// The directory lacks a file that every model directory has.
    #[error("{}: not a model directory: expected {expected} in it", message(file.display()))]
    IncompleteDirectory {
        /// The directory.
        file: PathBuf,
        /// The file that is missing.
        expected: &'static str,
    },
    /// The GGUF file breaks the format's rules.
    #[cfg(feature = "gguf")]
    #[error("{}: {source}", message(file.display()))]
    Gguf {
        /// The file.
        file: PathBuf,
        /// Which rule.
        source: crate::gguf::GgufError,
    },
    /// The parts of a split GGUF file do not make a whole one.
    #[cfg(feature = "gguf")]
    #[error("{}: {}", message(file.display()), message(source))]
    Split {
        /// The part, or where it should be.
        file: PathBuf,
        /// What is wrong with it.
        source: crate::gguf::SplitError,
    },
    /// The safetensors file breaks the format's rules.
    #[cfg(feature = "safetensors")]
    #[error("{}: {}", message(file.display()), message(source))]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// Which rule.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A JSON file is malformed.
    #[error("{}: {source}", message(file.display()))]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A side file is larger than any real one.
    #[error("{}: expected at most {limit} bytes, got at least {got}", message(file.display()))]
    FileTooLarge {
        /// The file.
        file: PathBuf,
        /// The most bytes that are read.
        limit: u64,
        /// Its size in bytes; of a file without an end, such as a device, what was read of it.
        got: u64,
    },
    /// A shard named by `model.safetensors.index.json` lies outside the model's directory.
    #[error("{}: expected the plain name of a file in the same directory, got `{got}`", message(file.display()), got = quoted(got))]
    ShardName {
        /// The index file.
        file: PathBuf,
        /// The name it gives.
        got: String,
    },
    /// A shard named by `model.safetensors.index.json` is not there.
    #[error("{}: expected this part of the model, which {} names, got no such file", message(file.display()), message(index.display()))]
    MissingShard {
        /// Where it should be.
        file: PathBuf,
        /// The index file.
        index: PathBuf,
    },
    /// The model's parameters are inconsistent or not supported.
    #[error("{}: {source}", message(file.display()))]
    Config {
        /// The file.
        file: PathBuf,
        /// Which parameter.
        source: ConfigError,
    },
    /// A tensor that the architecture needs is not in the file.
    #[error("{}: tensor `{tensor}` is missing", message(file.display()), tensor = quoted(tensor))]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
    },
    /// A tensor that the graph does not have, so that the model would compute something else.
    #[error(
        "{}: tensor `{tensor}`: not supported ({got}); ignoring it would change the results",
        message(file.display()), tensor = quoted(tensor))]
    UnknownTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// What it is, as far as its name says.
        got: &'static str,
    },
    /// The configuration says that the head is the embedding, and the file has another one.
    #[error(
        "{}: tensor `{tensor}`: expected the numbers of the embedding, because `tie_word_embeddings` is true, got others; set it \
         to false to use them, or take the tensor out of the file",
        message(file.display()),
        tensor = quoted(tensor)
    )]
    UntiedHead {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
    },
    /// A tensor's element type cannot be read.
    #[error("{}: tensor `{tensor}`: expected {expected}, got elements of type {got}", message(file.display()), tensor = quoted(tensor), got = quoted(got))]
    ElementType {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// The types that can be read there.
        expected: &'static str,
        /// The type's name in that format.
        got: String,
    },
    /// A tensor does not have the shape that the model's parameters imply.
    #[error("{}: tensor `{tensor}`: expected shape {expected:?}, got {got:?}", message(file.display()), tensor = quoted(tensor))]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// `[out, in]` for a matrix, `[length]` for a vector.
        expected: Vec<usize>,
        /// The shape in the file, outermost dimension first.
        got: Vec<usize>,
    },
    /// A tensor's bytes do not form whole blocks of its type.
    #[error("{}: tensor `{tensor}`: {source}", message(file.display()), tensor = quoted(tensor))]
    Quant {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// What was expected and got.
        source: QuantError,
    },
    /// A weight is NaN or infinite, which a damaged file or a broken conversion produces.
    #[error("{}: tensor `{tensor}`: expected finite weights, got {got} at row {row}, column {column}", message(file.display()), tensor = quoted(tensor))]
    NonFiniteWeight {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// Row in the file's order.
        row: usize,
        /// Column.
        column: usize,
        /// The value.
        got: f32,
    },
    /// What ternary weights are multiplied with is not usable. A scale of a damaged or unfinished file is often 0 or NaN.
    #[error(
        "{}: tensor `{tensor}`: expected a positive finite scale for the ternary weights, got {got}",
        message(file.display()), tensor = quoted(tensor))]
    TernaryScale {
        /// The file.
        file: PathBuf,
        /// The name of the tensor that holds the scale.
        tensor: String,
        /// The value.
        got: f32,
    },
    /// The blocks of a tensor have different scales, but a ternary matrix has one.
    #[error(
        "{}: tensor `{tensor}`: expected all blocks to have the scale of the first, {expected}, got {got} in block {block}",
        message(file.display()), tensor = quoted(tensor))]
    BlockScale {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// Counted from 0.
        block: usize,
        /// The first scale that is not 0.
        expected: f32,
        /// The block's.
        got: f32,
    },
    /// Packed ternary weights hold four rows in one.
    #[error("{}: tensor `{tensor}`: expected rows that are a multiple of 4, to unpack, got {got}", message(file.display()), tensor = quoted(tensor))]
    PackedRows {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// The rows that the model's parameters imply.
        got: usize,
    },
    /// A scale beside weights that are not ternary yet: whether they are to be rounded before or after is anybody's guess.
    #[error(
        "{}: tensor `{tensor}`: expected ternary weights beside a separate scale, got weights of several magnitudes",
        message(file.display()), tensor = quoted(tensor))]
    NotTernary {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
    },
    /// Weights make no ternary matrix: one of the codes is none of -1, 0 and 1, or there are too many columns.
    #[error("{}: tensor `{tensor}`: {source}", message(file.display()), tensor = quoted(tensor))]
    Ternary {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// What was expected and got.
        source: crate::TernaryError,
    },
    /// Quantised weights cannot be packed.
    #[error("{}: tensor `{tensor}`: {source}", message(file.display()), tensor = quoted(tensor))]
    Quantised {
        /// The file.
        file: PathBuf,
        /// The tensor's name in that format.
        tensor: String,
        /// What was expected and got.
        source: crate::QuantisedError,
    },
    /// Attention settings do not fit the model.
    #[error("attention settings: {0}")]
    Spec(#[source] deltallm_attn::SpecError),
    /// The head counts make no attention layer.
    #[error(transparent)]
    Shape(#[from] deltallm_attn::AttentionError),
    /// The attention of a layer failed.
    #[error("layer {layer}: {source}")]
    Attention {
        /// Counted from 0.
        layer: usize,
        /// What failed.
        source: deltallm_attn::AttentionError,
    },
    /// The caches are to be narrowed before a call would use up the memory budget, and a kernel does not say what it charges.
    #[error(
        "layer {layer}: the kernel does not say how many bytes the next call needs (`growth` is `None`), so the cache cannot be \
         narrowed in time; implement `growth`, or use `AtLimit::Error`"
    )]
    UnknownGrowth {
        /// Counted from 0.
        layer: usize,
    },
    /// A session is to keep to a memory budget that its kernels do not charge.
    #[error(
        "layer {layer}: the kernel charges another memory budget than the one given; build the kernels with this budget or a \
         clone of it"
    )]
    OtherBudget {
        /// Counted from 0.
        layer: usize,
    },
    /// A session with a kernel that cannot be forked.
    #[error("layer {layer}: expected a kernel that can be forked, got one that cannot")]
    Fork {
        /// Counted from 0.
        layer: usize,
    },
    /// A session could not be saved, or a saved one not be loaded.
    #[error("{}: {source}", message(file.display()))]
    Snapshot {
        /// The file of the session.
        file: PathBuf,
        /// What was expected, and what there is.
        source: deltallm_core::SnapshotError,
    },
    /// Sessions that are to be continued together belong to different models.
    #[error("expected sessions of one model, got another model's at index {index}")]
    OtherModel {
        /// Which session.
        index: usize,
    },
    /// A call without tokens.
    #[error("expected at least one token, got none")]
    NoTokens,
    /// A token that the model does not know.
    #[error("expected token ids below {vocab_size}, got {id}")]
    TokenOutOfRange {
        /// Tokens of the model's vocabulary.
        vocab_size: usize,
        /// The offending id.
        id: u32,
    },
    /// More tokens than the model was made for.
    #[error("expected at most {context_length} tokens of context, got {got}")]
    ContextFull {
        /// Positions of the model.
        context_length: usize,
        /// Positions that the call would need.
        got: usize,
    },
    /// Not one attention kernel per layer.
    #[error("expected {expected} attention kernels, one per layer, got {got}")]
    KernelCount {
        /// Layers of the model.
        expected: usize,
        /// Kernels passed.
        got: usize,
    },
    /// The kernels do not hold the same tokens.
    #[error("layer {layer}: expected a cache of {expected} tokens like layer 0's, got {got}")]
    KernelLength {
        /// Counted from 0.
        layer: usize,
        /// Tokens in the first layer's cache.
        expected: usize,
        /// Tokens in this layer's cache.
        got: usize,
    },
    /// The tokenizer could not be made from the model's files.
    #[error("{}: {source}", message(file.display()))]
    Tokenizer {
        /// The file or directory.
        file: PathBuf,
        /// What is wrong with it.
        source: crate::TokenizerError,
    },
}

impl ModelError {
    /// Whether the memory budget is what stopped a layer: more of it, or fewer tokens, would help.
    pub fn is_budget_exhausted(&self) -> bool {
        use deltallm_attn::AttentionError;
        use deltallm_core::CoreError;
        matches!(
            self,
            Self::Attention { source: AttentionError::Core(CoreError::BudgetExhausted { .. }), .. }
        )
    }
}
