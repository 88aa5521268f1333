//! Prompts that have been read before, on the disk.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};
use ndarray::Array1;
use sha2::{Digest, Sha256};

use super::{
    saved::{snapshot, write_file},
    sequence::Session,
};
use crate::{ModelError, files::mmap};

/// A folder of sessions that have read a prompt: who asks for the same gets the session and the logits after it, and who begins alike goes on from
/// there.
///
/// Of every prompt two sessions are kept: at its end, and at the last whole [chunk](Session::set_chunk) before it. Only there another prompt
/// goes on, so that it is cut where it would be cut had nothing been kept: the answer is the same, bit for bit. A session is found by its tokens, its model and the settings of its kernels, which are all in the name of its file. Several processes may
/// use a folder at once: a file gets its name once it is whole, and one that goes away while it is read does no harm. Those that have not been
/// used for the longest time are deleted where all together would be larger than the limit.
///
/// ```
/// use std::sync::Arc;
///
/// use deltallm_attn::KernelSpec;
/// use deltallm_models::{Model, ModelFile, PromptCache, Session};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// # let folder = std::env::temp_dir().join(format!("doc-prompts-{}", std::process::id()));
/// let (model, spec) = (Arc::new(Model::load(&file)?), KernelSpec::default());
/// let cache = PromptCache::new(&folder, 1 << 30)?;
/// let alike = |a, b| spec.reads_alike(&model.kernel_context(), a, b);
///
/// let mut first = Session::with_spec(model.clone(), &spec)?;
/// assert_eq!(cache.prefill(&mut first, &[1, 2, 3], &alike, |_| {})?.found, 0);
///
/// let mut second = Session::with_spec(model.clone(), &spec)?;
/// assert_eq!(cache.prefill(&mut second, &[1, 2, 3], &alike, |_| {})?.found, 3);
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PromptCache {
    folder: PathBuf,
    limit: u64,
}

/// A prompt that a session has got to the end of.
#[derive(Debug)]
pub struct Prompted {
    /// After the last token, `[vocab_size]`.
    pub logits: Array1<f32>,
    /// How many of the first tokens had been read before.
    pub found: usize,
}

const EXTENSION: &str = "kv";

impl PromptCache {
    /// The folder, which is made if there is none; files in it take at most `limit` bytes together.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Result<Self, ModelError> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|source| ModelError::Io { file: folder.clone(), source })?;
        Ok(Self { folder, limit })
    }

    /// Reads `prompt` into an empty session, as much of it as possible from the folder, and keeps it there. `alike` says whether prompts of two
    /// lengths that begin alike are read alike as far as that goes
    /// ([`KernelSpec::reads_alike`](deltallm_attn::KernelSpec::reads_alike)), and `progress` is told after every chunk how many tokens are done.
    ///
    /// # Errors
    /// As [`Session::prefill`]. A file that cannot be read or written is none: a damaged one is deleted, and a full disk keeps nothing.
    pub fn prefill(
        &self,
        session: &mut Session,
        prompt: &[u32],
        alike: &dyn Fn(usize, usize) -> bool,
        mut progress: impl FnMut(usize),
    ) -> Result<Prompted, ModelError> {
        // With a memory limit chunks may be cut anywhere; and not every kernel can be saved.
        let key = Key::of(session).ok().filter(|_| !session.narrows());
        let Some(key) = key else {
            return Ok(Prompted { logits: session.prefill_with(prompt, progress)?, found: 0 });
        };
        let (found, logits) = self.find(session, &key, prompt, alike);
        if let Some(logits) = logits {
            return Ok(Prompted { logits, found });
        }
        let last_chunk = (prompt.len() - 1) / session.chunk * session.chunk;
        let logits = session.prefill_watched(&prompt[found..], |session, done| {
            progress(found + done);
            if found + done == last_chunk {
                // What cannot be kept is read again next time.
                let _ = self.keep(session, &key, prompt.len(), None);
            }
        })?;
        let _ = self.keep(session, &key, prompt.len(), Some(&logits));
        Ok(Prompted { logits, found })
    }

    /// Loads the longest beginning of `prompt` that is there: how long it is, and the logits if it is all.
    fn find(
        &self,
        session: &mut Session,
        key: &Key,
        prompt: &[u32],
        alike: &dyn Fn(usize, usize) -> bool,
    ) -> (usize, Option<Array1<f32>>) {
        let mut names: Vec<Name> = self.files().map(|file| file.name).collect();
        names.retain(|name| {
            let whole = name.tokens == prompt.len() && name.of == name.tokens;
            let part =
                name.tokens < prompt.len() && name.tokens % session.chunk == 0 && name.tokens < name.of;
            whole || part && alike(name.of, prompt.len())
        });
        names.sort_by_key(|name| std::cmp::Reverse(name.tokens));
        for name in names.into_iter().filter(|name| name.hash == key.with(&prompt[..name.tokens])) {
            let path = self.folder.join(name.to_string());
            match load(session, &path, name.tokens == name.of) {
                Ok(logits) => {
                    let file = File::options().write(true).open(&path);
                    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
                    return (name.tokens, logits);
                }
                // No room for it in memory, or gone meanwhile.
                Err(ModelError::Snapshot { source: SnapshotError::Core(_), .. } | ModelError::Io { .. }) => {}
                Err(_) => drop(fs::remove_file(&path)),
            }
        }
        (0, None)
    }

    /// Keeps a session that is reading a prompt of `of` tokens, or has read it.
    fn keep(
        &self,
        session: &Session,
        key: &Key,
        of: usize,
        logits: Option<&Array1<f32>>,
    ) -> Result<(), ModelError> {
        let tokens = session.tokens();
        let path = self.folder.join(Name { tokens: tokens.len(), of, hash: key.with(tokens) }.to_string());
        let mut writer = SnapshotWriter::new();
        session.write(&mut writer).map_err(|source| snapshot(&path, source))?;
        logits.into_iter().for_each(|logits| writer.floats(&logits.to_vec()));
        if self.make_room(writer.bytes()) {
            write_file(&writer, &path).map_err(|source| ModelError::Io { file: path, source })?;
        }
        Ok(())
    }

    /// Deletes what has not been used for the longest time until there is room for `bytes`; whether there can be.
    fn make_room(&self, bytes: u64) -> bool {
        let Some(room) = self.limit.checked_sub(bytes) else { return false };
        let mut files: Vec<Entry> = self.files().collect();
        files.sort_by_key(|file| file.used);
        let mut held: u64 = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if held <= room {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(&file.path);
            held -= file.bytes;
        }
        true
    }

    fn files(&self) -> impl Iterator<Item = Entry> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| Entry::of(entry.path()).ok().flatten())
    }
}

/// The name of a saved session: `TOKENS-OF-HASH.kv`.
#[derive(Debug, PartialEq)]
struct Name {
    tokens: usize,
    /// Tokens of the prompt, of which these are the first.
    of: usize,
    /// Of the model, the settings and the tokens.
    hash: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}.{EXTENSION}", self.tokens, self.of, self.hash)
    }
}

impl Name {
    /// `None` for the name of something else.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.strip_suffix(EXTENSION)?.strip_suffix('.')?.splitn(3, '-');
        let (tokens, of) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let name = Self { tokens, of, hash: parts.next()?.to_owned() };
        (name.tokens > 0 && name.to_string() == path.file_name()?.to_str()?).then_some(name)
    }
}

/// A file of the folder.
struct Entry {
    path: PathBuf,
    name: Name,
    bytes: u64,
    used: SystemTime,
}

impl Entry {
    /// `None` for what is not a saved session.
    fn of(path: PathBuf) -> io::Result<Option<Self>> {
        let about = fs::metadata(&path)?;
        let name = Name::of(&path).filter(|_| about.is_file());
        let used = about.modified()?;
        Ok(name.map(|name| Self { path, name, bytes: about.len(), used }))
    }
}

/// What a session is found by, but for its tokens: the model and the settings of all kernels.
struct Key(Sha256);

impl Key {
    /// Of a session that is still empty.
    fn of(session: &Session) -> Result<Self, SnapshotError> {
        let mut writer = SnapshotWriter::new();
        session.write(&mut writer)?;
        Ok(Self(Sha256::new_with_prefix(writer.numbers())))
    }

    /// With tokens: 32 hexadecimal digits.
    fn with(&self, tokens: &[u32]) -> String {
        let mut hash = self.0.clone();
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Loads a session, and the logits after it if there are to be any.
fn load(session: &mut Session, path: &Path, whole: bool) -> Result<Option<Array1<f32>>, ModelError> {
    let reader = SnapshotReader::copying(Bytes::from_owner(mmap::Bytes::map(path)?));
    let read = |mut reader: SnapshotReader| {
        session.read(&mut reader)?;
        let logits = if whole { Some(reader.floats()?) } else { None };
        if let Some(logits) = &logits {
            reader.expect("logits of a vocabulary of", session.model().config().vocab_size, logits.len())?;
        }
        reader.end()?;
        Ok(logits.map(Array1::from))
    };
    reader.and_then(read).map_err(|source| {
        session.clear();
        snapshot(path, source)
    })
}
