//! Sessions in files, so that a prompt is read once and no more.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use deltallm_attn::{AttentionKernel, KernelSpec};
use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};

use super::{draft::Draft, sequence::Session};
use crate::{Model, ModelError, files::mmap};

impl Session {
    /// A session with the same tokens, that goes its own way from here: several samples from one prompt, beams, agents that branch. That
    /// costs next to nothing, because both share what is cached; what either of them changes is copied then.
    ///
    /// ```
    /// use deltallm_attn::KernelSpec;
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let mut prompt = Session::with_spec(Model::load(&file)?, &KernelSpec::default())?;
    /// prompt.prefill(&[1, 2, 3])?;
    /// let mut samples = [prompt.fork()?, prompt.fork()?];
    /// for (sample, token) in samples.iter_mut().zip([4, 5]) {
    ///     sample.decode(token)?;
    /// }
    /// assert_eq!((prompt.tokens().len(), samples[1].tokens()), (3, &[1, 2, 3, 5][..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ModelError::Fork`] with the layer whose kernel cannot be forked; [`ModelError::Attention`] where the budget does not cover copies of what
    /// a [draft](Self::decode_speculative) stands in.
    pub fn fork(&self) -> Result<Self, ModelError> {
        let mut kernels = Vec::with_capacity(self.kernels.len());
        for (layer, kernel) in self.kernels.iter().enumerate() {
            kernels.push(kernel.fork().ok_or(ModelError::Fork { layer })?);
        }
        let mut fork = Self {
            model: Arc::clone(&self.model),
            kernels,
            tokens: self.tokens.clone(),
            chunk: self.chunk,
            limit: self.limit.clone(),
            narrowed: self.narrowed,
            draft: self.draft.as_ref().map(|_| Draft::default()),
            speculation: self.speculation,
        };
        fork.discard_draft()?;
        Ok(fork)
    }

    /// Writes the tokens and all caches to a file, from which [`open`](Self::open) goes on, bit for bit. The format is described in
    /// `docs/formats.md`.
    ///
    /// The file gets its name once it is whole: whatever happens meanwhile, there is the old one, or none.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use deltallm_attn::KernelSpec;
    /// use deltallm_models::{Model, ModelFile, Session};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// # let path = std::env::temp_dir().join(format!("doc-{}.kv", std::process::id()));
    /// let (model, spec) = (Arc::new(Model::load(&file)?), KernelSpec::default());
    /// let mut session = Session::with_spec(model.clone(), &spec)?;
    /// session.prefill(&[1, 2, 3])?;
    /// session.save(&path)?;
    ///
    /// let mut later = Session::open(model, &spec, &path)?;
    /// assert_eq!(later.tokens(), [1, 2, 3]);
    /// assert_eq!(later.decode(4)?, session.decode(4)?);
    /// # std::fs::remove_file(&path)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ModelError::Snapshot`] for kernels that cannot be saved, [`ModelError::Io`] for what the system says of the file; as [`fork`](Self::fork), if there
    /// is a draft to be left out.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        let path = path.as_ref();
        // Without a draft.
        let fork = self.draft.is_some().then(|| self.fork()).transpose()?;
        let mut writer = SnapshotWriter::new();
        fork.as_ref().unwrap_or(self).write(&mut writer).map_err(|source| snapshot(path, source))?;
        writer.write_file(path).map_err(|source| ModelError::Io { file: path.to_owned(), source })
    }

    /// A session with the attention that `spec` describes, which goes on where the one that was saved had got to. Its caches are read into
    /// memory, which is charged.
    ///
    /// # Errors
    /// As [`with_spec`](Self::with_spec) and [`load`](Self::load).
    pub fn open(
        model: impl Into<Arc<Model>>,
        spec: &KernelSpec,
        path: impl AsRef<Path>,
    ) -> Result<Self, ModelError> {
        let mut session = Self::with_spec(model, spec)?;
        session.load(path)?;
        Ok(session)
    }

    /// Takes over what was saved to a file, into a session that is still empty and has the same model and kernels. Afterwards the file is
    /// not needed; meanwhile memory holds it beside the caches, uncharged, which [`map`](Self::map) spares.
    ///
    /// # Errors
    /// [`ModelError::Io`]; [`ModelError::Snapshot`] for a file that is damaged, of another model, or of caches with other settings. The session
    /// is then still empty.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| ModelError::Io { file: path.to_owned(), source })?;
        let reader = SnapshotReader::copying(bytes.into());
        self.read_whole(reader).map_err(|source| snapshot(path, source))
    }

    /// The same, but caches are used where they lie in the mapped file, and pages copied when they are written: nothing is read twice, and
    /// several processes share the memory, which is not charged. The file must not be changed while it is in use
    /// ([`Bytes::map`](crate::Bytes::map)); giving its name to another one does no harm.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn map(&mut self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        let path = path.as_ref();
        let reader = SnapshotReader::lending(Bytes::from_owner(mmap::Bytes::map(path)?));
        self.read_whole(reader).map_err(|source| snapshot(path, source))
    }

    fn read_whole(&mut self, reader: Result<SnapshotReader, SnapshotError>) -> Result<(), SnapshotError> {
        self.read(&mut reader?, |_, reader| reader.end())
    }

    /// Adds the session to a snapshot.
    pub(super) fn write(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        writer.text("session");
        writer.text(&self.model.config().fingerprint().to_string());
        writer.number(self.model.weights_checksum().into());
        writer.list(&self.tokens);
        self.kernels.iter().try_for_each(|kernel| kernel.save(writer))
    }

    /// Takes over the session that is next in a snapshot, if `rest` takes its tokens and what follows.
    pub(super) fn read<T>(
        &mut self,
        reader: &mut SnapshotReader,
        rest: impl FnOnce(&[u32], &mut SnapshotReader) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        if !self.tokens.is_empty() {
            return Err(SnapshotError::Unsupported {
                reason: "expected an empty session to load into, got one in use",
            });
        }
        let what = reader.text()?;
        reader.expect("a", "session", &what)?;
        let model = reader.text()?;
        reader.expect("model", self.model.config().fingerprint().to_string(), model)?;
        let weights = reader.number()?;
        reader.expect("weights with the checksum", self.model.weights_checksum().into(), weights)?;
        let tokens = reader.list()?;
        let kernels = self.read_kernels(&tokens, reader)?;
        let rest = rest(&tokens, reader)?;
        (self.kernels, self.tokens) = (kernels, tokens);
        Ok(rest)
    }

    /// Forks of the kernels, which are empty, that have been loaded: where one cannot be, these stay as they are.
    fn read_kernels(
        &self,
        tokens: &[u32],
        reader: &mut SnapshotReader,
    ) -> Result<Vec<Box<dyn AttentionKernel>>, SnapshotError> {
        let vocabulary = self.model.config().vocab_size;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            let (expected, got) = ("tokens of the model's vocabulary", u64::from(*token));
            return Err(SnapshotError::Invalid { what: "token", expected, got });
        }
        let mut kernels = Vec::with_capacity(self.kernels.len());
        for kernel in &self.kernels {
            let reason = "this kernel cannot be forked, and so not be loaded without a trace if that fails";
            let mut kernel = kernel.fork().ok_or(SnapshotError::Unsupported { reason })?;
            kernel.load(reader)?;
            if kernel.len() != tokens.len() {
                let (expected, got) = ("caches of all tokens", kernel.len() as u64);
                return Err(SnapshotError::Invalid { what: "tokens", expected, got });
            }
            kernels.push(kernel);
        }
        Ok(kernels)
    }
}

pub(super) fn snapshot(path: &Path, source: SnapshotError) -> ModelError {
    ModelError::Snapshot { file: path.to_owned(), source }
}
