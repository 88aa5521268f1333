//! Prompts that have been read before, on the disk.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use deltallm_core::{HeadSparsity, SnapshotError, SnapshotReader, SnapshotWriter};
use ndarray::Array1;
use sha2::{Digest, Sha256};

use super::{prompted::Prompted, saved::snapshot, sequence::Session};
use crate::{ModelError, files::mmap};

/// A folder of sessions that have read a prompt: who asks for the same gets the session and the logits after it, and who begins alike goes on from
/// there.
///
/// Of every prompt two sessions are kept: at its end, and at the last whole [chunk](Session::set_chunk) before it. Only there another prompt
/// goes on, so that it is cut where it would be cut had nothing been kept: the answer is the same, bit for bit. A session is found by its tokens, its model and the settings of its kernels, which are all in the name of its file. Several processes may
/// use a folder at once: a file gets its name once it is whole, and one that goes away while it is read does no harm on a local disk. (Files are mapped: on a network's, one that
/// another machine deletes can end the process that reads it.) Those that have not been
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

const EXTENSION: &str = "kv";

/// A file that has been written for so long is not being written any more.
const ABANDONED: Duration = Duration::from_secs(3600);

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
        let key = Key::of(session).filter(|_| !prompt.is_empty());
        let Some(key) = key else {
            let logits = session.prefill_with(prompt, progress)?;
            return Ok(Prompted::found(logits, 0));
        };
        // Refused before anything is found.
        session.model.check(prompt, &session.kernels)?;
        let (found, logits) = self.find(session, &key, prompt, alike);
        if let Some(logits) = logits {
            return Ok(Prompted::found(logits, found));
        }
        let mut writing = Duration::ZERO;
        let last_chunk = (prompt.len() - 1) / session.chunk * session.chunk;
        let read = session.prefill_watched(&prompt[found..], |session, done| {
            progress(found + done);
            if found + done == last_chunk {
                writing += self.keep(session, &key, prompt.len(), None);
            }
        });
        let logits = match read {
            Ok(logits) => logits,
            Err(error) => {
                // What was found goes, too: the session was empty.
                session.rewind(0)?;
                return Err(error);
            }
        };
        writing += self.keep(session, &key, prompt.len(), Some(&logits));
        Ok(Prompted { logits, found, writing })
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
            match load(session, &path, &prompt[..name.tokens], name.tokens == name.of) {
                Ok(logits) => {
                    let file = File::options().write(true).open(&path);
                    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
                    return (name.tokens, logits);
                }
                Err(ModelError::Snapshot { source, .. }) if is_damage(&source) => {
                    drop(fs::remove_file(&path))
                }
                // No room for it in memory, or gone meanwhile.
                Err(_) => {}
            }
        }
        (0, None)
    }

    /// Keeps a session that is reading a prompt of `of` tokens, or has read it; how long that took. What cannot be kept is read again next
    /// time.
    fn keep(&self, session: &Session, key: &Key, of: usize, logits: Option<&Array1<f32>>) -> Duration {
        let (start, tokens) = (Instant::now(), session.tokens());
        let path = self.folder.join(Name { tokens: tokens.len(), of, hash: key.with(tokens) }.to_string());
        let mut writer = SnapshotWriter::new();
        if session.write(&mut writer).is_ok() {
            logits.into_iter().for_each(|logits| writer.floats(&logits.to_vec()));
            if self.make_room(writer.bytes()) && writer.write_file(&path).is_ok() {
                // Others may have written at the same time.
                self.make_room(0);
            }
        }
        start.elapsed()
    }

    /// Deletes what has not been used for the longest time until there is room for `bytes`; whether there can be.
    fn make_room(&self, bytes: u64) -> bool {
        let Some(room) = self.limit.checked_sub(bytes) else { return false };
        self.drop_abandoned();
        let mut files: Vec<Entry> = self.files().collect();
        files.sort_by_key(|file| file.used);
        let mut held = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        for file in files {
            if held <= room {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(&file.path);
            held -= if file.path.exists() { 0 } else { file.bytes };
        }
        held <= room
    }

    /// Deletes what a process has begun to write that is no more.
    fn drop_abandoned(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let begun = entry.metadata().and_then(|about| about.modified());
            let old = begun.is_ok_and(|begun| begun.elapsed().is_ok_and(|age| age > ABANDONED));
            let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(SnapshotWriter::UNFINISHED));
            let ours = inner
                .and_then(|name| name.rsplit_once('.'))
                .is_some_and(|(name, _)| Name::parse(name).is_some());
            if ours && old {
                let _ = fs::remove_file(entry.path());
            }
        }
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
    fn parse(whole: &str) -> Option<Self> {
        let mut parts = whole.strip_suffix(EXTENSION)?.strip_suffix('.')?.splitn(3, '-');
        let (tokens, of) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let name = Self { tokens, of, hash: parts.next()?.to_owned() };
        let hash = name.hash.len() == 32 && name.hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hash && name.tokens > 0 && name.to_string() == whole).then_some(name)
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
        let name = path.file_name().and_then(|name| Name::parse(name.to_str()?)).filter(|_| about.is_file());
        let used = about.modified()?;
        Ok(name.map(|name| Self { path, name, bytes: about.len(), used }))
    }
}

/// What a session is found by, but for its tokens: the model and the settings of all kernels.
struct Key(Sha256);

impl Key {
    /// Of a session that has not been used yet; `None` where nothing can be kept: of kernels that are not saved, and with a memory limit, which
    /// may cut chunks anywhere.
    fn of(session: &Session) -> Option<Self> {
        let used = !session.tokens().is_empty() || session.stats().total() != HeadSparsity::default();
        let mut writer = SnapshotWriter::new();
        session.write(&mut writer).ok().filter(|()| !used && !session.narrows())?;
        let (version, isa, chunk) = (env!("CARGO_PKG_VERSION"), session.model().isa(), session.chunk);
        writer.text(&format!("{version}, format {}, {isa}, chunks of {chunk}", SnapshotWriter::VERSION));
        Some(Self(Sha256::new_with_prefix(writer.numbers())))
    }

    /// With tokens: 32 hexadecimal digits.
    fn with(&self, tokens: &[u32]) -> String {
        let mut hash = self.0.clone();
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Loads a session that has read `tokens`, and the logits after them if there are to be any.
fn load(
    session: &mut Session,
    path: &Path,
    tokens: &[u32],
    whole: bool,
) -> Result<Option<Array1<f32>>, ModelError> {
    // Files here are replaced and deleted, but never changed, so that they can be used where they lie.
    let reader = SnapshotReader::lending(Bytes::from_owner(mmap::Bytes::map(path)?));
    let vocabulary = session.model().config().vocab_size;
    let rest = |got: &[u32], reader: &mut SnapshotReader| {
        if got != tokens {
            // A file that has been given another name.
            let (what, expected) = ("tokens", "those that the name stands for");
            return Err(SnapshotError::Invalid { what, expected, got: got.len() as u64 });
        }
        let logits = if whole { Some(reader.floats()?) } else { None };
        if let Some(logits) = &logits {
            reader.expect("logits of a vocabulary of", vocabulary, logits.len())?;
        }
        reader.end()?;
        Ok(logits.map(Array1::from))
    };
    let read = |mut reader: SnapshotReader| session.read(&mut reader, rest);
    reader.and_then(read).map_err(|source| snapshot(path, source))
}

/// Whether no process will ever be able to use the file.
fn is_damage(error: &SnapshotError) -> bool {
    !matches!(error, SnapshotError::Core(_) | SnapshotError::Made { .. } | SnapshotError::Unsupported { .. })
}
