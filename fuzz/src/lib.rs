//! What the fuzz targets share.

pub mod attention;
pub mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltallm_attn::{AttentionOptions, HybridAttention, HybridConfig, KvStore};
use deltallm_models::{LinearForm, Model, ModelFile, Session, StreamDecoder, Tokenizer};

/// Keeps rayon on one thread: runs are the same each time, and several targets can run side by side.
pub fn one_thread() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("no pool has been made before");
}

/// Loads a model in both forms and runs a few tokens through it. Sizes are bounded by the file's, so nothing here has a limit
/// of its own.
pub fn run_model(file: ModelFile) {
    let mut file = file;
    for form in [LinearForm::default(), LinearForm::F32] {
        file = file.with_linear_form(form);
        let Ok(model) = Model::load(&file).map(Arc::new) else { return };
        let config = HybridConfig::default().options(AttentionOptions::default().store(KvStore::F32));
        let kernel = |_| Ok(Box::new(HybridAttention::new(model.attention_shape(), config.clone())?) as _);
        let mut session = Session::new(model.clone(), kernel).expect("kernels for a checked shape");
        let last = model.config().vocab_size as u32 - 1;
        // Weights may be so large that the products overflow; that is an error, not a panic.
        if session.prefill(&[0, last, last / 2]).is_ok() {
            let _ = session.decode(0);
        }
    }
}

/// Encodes a text as text and as a prompt. Decoding in pieces must equal decoding at once.
pub fn use_tokenizer(tokenizer: &Tokenizer, text: &str) {
    let vocab_size = tokenizer.vocab_size() as u32;
    assert!(tokenizer.token_text(vocab_size - 1).is_ok());
    // Ids from the vocabulary's size on may be padding of the embedding.
    assert!(tokenizer.decode(&[u32::MAX]).is_err());
    let escaped = tokenizer.escape(text);
    let encodings = [
        tokenizer.encode(text, false),
        tokenizer.encode(text, true),
        tokenizer.encode_prompt(&escaped, true),
    ];
    for ids in encodings.into_iter().flatten() {
        let whole = tokenizer.decode(&ids).expect("its own ids");
        let mut stream = StreamDecoder::new(tokenizer);
        let mut pieces = String::new();
        for id in ids {
            pieces.extend(stream.push(id).expect("its own id"));
        }
        pieces.extend(stream.finish());
        assert_eq!(pieces, whole);
    }
}

/// A directory in memory, where there is such a place, for what can only be read from files.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// An empty one, for this process alone.
    pub fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("deltallm-fuzz-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("create a directory for the inputs");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file anew.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).expect("write an input");
    }
}
