//! Prompts that have been read before, in memory.

use std::{mem, sync::Arc};

use deltallm_attn::{KernelContext, KernelSpec, MemoryBudget};
use ndarray::Array1;

use super::{Session, prompted::Prompted};
use crate::{Model, ModelError};

/// Sessions of one model that share what their prompts have in common: each beginning is read once, and held once.
///
/// What has been read is kept as a tree, a node for every [chunk](Session::set_chunk) of a prompt and one for its end. A prompt goes on from
/// the deepest node that it shares, so it is cut where it would be cut had nothing been kept: the answer is the same, bit for bit. Nodes are
/// [forks](Session::fork), so pages are held once, however many nodes and sessions have them; a node has of its own what is not full, and the
/// exact window. Those that have not been used for the longest time are forgotten where a prompt finds no memory, beyond
/// [`most_bytes`](Self::most_bytes), and when [asked for](Self::make_room): a session that goes on by itself does not know of them.
///
/// ```
/// use deltallm_attn::{KernelSpec, MemoryBudget};
/// use deltallm_models::{Model, ModelFile, PrefixStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// let model = Model::load(&file)?;
/// let context = model.kernel_context().budget(MemoryBudget::new(64 << 20));
/// let mut store = PrefixStore::new(model, KernelSpec::default(), context)?.chunk(64);
///
/// let system: Vec<u32> = (0..80).collect();
/// let (mut one, prompted) = store.session(&[&system[..], &[1, 2]].concat(), |_| {})?;
/// assert_eq!(prompted.found, 0);
/// let (other, prompted) = store.session(&[&system[..], &[3]].concat(), |_| {})?;
/// assert_eq!(prompted.found, 64);
/// one.decode(7)?; // each goes its own way
/// assert_eq!((one.tokens().len(), other.tokens().len()), (83, 81));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PrefixStore {
    spec: KernelSpec,
    context: KernelContext,
    /// Without tokens; all others are forks of it.
    empty: Session,
    first: Vec<Node>,
    most_bytes: usize,
    /// Counts the prompts.
    time: u64,
}

/// A session that has read the chunks up to this node.
#[derive(Debug)]
struct Node {
    /// The tokens since the node before.
    chunk: Vec<u32>,
    /// Tokens of the prompt as part of which they were read.
    of: usize,
    session: Session,
    /// Of the prompt that ends here.
    logits: Option<Array1<f32>>,
    /// When last.
    used: u64,
    next: Vec<Node>,
}

impl PrefixStore {
    /// Nothing has been read yet. Sessions have the attention that `spec` describes, and charge the budget of `context`.
    ///
    /// # Errors
    /// As [`Session::with_spec`].
    pub fn new(
        model: impl Into<Arc<Model>>,
        spec: KernelSpec,
        context: KernelContext,
    ) -> Result<Self, ModelError> {
        let model = model.into();
        spec.validate(context.shape, model.config().layers).map_err(ModelError::Spec)?;
        let empty = Session::new(model, |layer| spec.build(layer, &context))?;
        Ok(Self { spec, context, empty, first: Vec::new(), most_bytes: usize::MAX, time: 0 })
    }

    /// Sets the tokens of a [chunk](Session::set_chunk). Said before the first prompt.
    #[must_use]
    pub fn chunk(mut self, tokens: usize) -> Self {
        self.empty.set_chunk(tokens);
        self
    }

    /// Sets how many bytes of the budget may be in use, by sessions too, before what is kept is forgotten; without it, all of them.
    #[must_use]
    pub fn most_bytes(self, bytes: usize) -> Self {
        Self { most_bytes: bytes, ..self }
    }

    /// The account that sessions and store charge.
    pub fn budget(&self) -> &MemoryBudget {
        &self.context.budget
    }

    /// A session that has read `prompt`, and the logits after it. `progress` is told after every chunk how many tokens are done.
    ///
    /// # Errors
    /// As [`Session::prefill`]; an exhausted budget only when nothing is left to be forgotten.
    pub fn session(
        &mut self,
        prompt: &[u32],
        mut progress: impl FnMut(usize),
    ) -> Result<(Session, Prompted), ModelError> {
        self.time += 1;
        // What a first try has read before memory ended is there for the second.
        let (mut found_first, mut keeps) = (None, true);
        let read = loop {
            match self.read(prompt, keeps, &mut found_first, &mut progress) {
                Err(error) if error.is_budget_exhausted() && keeps => {
                    // Others first; then what this prompt has of its own.
                    keeps = self.first.iter().any(|node| node.oldest() < self.time);
                    if keeps {
                        self.forget_oldest();
                    } else {
                        self.clear();
                    }
                }
                read => break read,
            }
        };
        while self.budget().used() > self.most_bytes && self.forget_oldest() {}
        let (session, logits) = read?;
        Ok((session, Prompted::found(logits, found_first.unwrap_or(0))))
    }

    /// Forgets what has not been used for the longest time until so many bytes of the budget are free; whether they are.
    pub fn make_room(&mut self, bytes: usize) -> bool {
        while self.budget().available() < bytes {
            if !self.forget_oldest() {
                return false;
            }
        }
        true
    }

    /// Forgets all that has been read; sessions keep what they have.
    pub fn clear(&mut self) {
        self.first.clear();
    }

    fn read(
        &mut self,
        prompt: &[u32],
        keeps: bool,
        found_first: &mut Option<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(Session, Array1<f32>), ModelError> {
        let Self { spec, context, empty, first, time, .. } = self;
        let (chunk, time) = (empty.chunk, *time);
        // Down to the deepest node that the prompt shares.
        let (mut nodes, mut deepest, mut found) = (first, &*empty, 0);
        loop {
            let rest = &prompt[found..];
            let shared = nodes.iter().position(|node| match node.logits {
                Some(_) => node.chunk == rest,
                None => {
                    rest.len() > chunk
                        && node.chunk == rest[..chunk]
                        && spec.reads_alike(context, node.of, prompt.len())
                }
            });
            let Some(shared) = shared else { break };
            let node = &mut nodes[shared];
            node.used = time;
            found += node.chunk.len();
            if let Some(logits) = node.logits.clone() {
                found_first.get_or_insert(found);
                return Ok((node.session.fork()?, logits));
            }
            (nodes, deepest) = (&mut node.next, &node.session);
        }
        found_first.get_or_insert(found);
        // On from there, with a node for every chunk.
        let mut session = deepest.fork()?;
        let mut at = Some(nodes).filter(|_| keeps);
        let mut add = |session: &Session, from: usize, logits: Option<Array1<f32>>| {
            // One that cannot be forked for want of memory is not kept, and none after it.
            let (Some(nodes), Ok(session)) = (at.take(), session.fork()) else { return };
            let chunk = prompt[from..session.tokens().len()].to_vec();
            nodes.push(Node { chunk, of: prompt.len(), session, logits, used: time, next: Vec::new() });
            at = nodes.last_mut().map(|node| &mut node.next);
        };
        let mut last = found;
        let logits = session.prefill_watched(&prompt[found..], |session, done| {
            progress(found + done);
            if found + done < prompt.len() {
                add(session, last, None);
                last = found + done;
            }
        })?;
        add(&session, last, Some(logits.clone()));
        Ok((session, logits))
    }

    /// Forgets the node that has not been used for the longest time; whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let mut nodes = &mut self.first;
        while let Some(oldest) = (0..nodes.len()).min_by_key(|node| nodes[*node].oldest()) {
            if nodes[oldest].next.is_empty() {
                nodes.swap_remove(oldest);
                return true;
            }
            nodes = &mut nodes[oldest].next;
        }
        false
    }
}

impl Node {
    /// When the node was last used that has not been used for the longest time, of this one and those after it: one at an end, because
    /// whoever uses a node uses those before it.
    fn oldest(&self) -> u64 {
        let (mut oldest, mut nodes) = (u64::MAX, vec![self]);
        while let Some(node) = nodes.pop() {
            if node.next.is_empty() {
                oldest = oldest.min(node.used);
            }
            nodes.extend(&node.next);
        }
        oldest
    }
}

/// One after the other: a tree of small chunks is deeper than the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut nodes = mem::take(&mut self.next);
        while let Some(mut node) = nodes.pop() {
            nodes.append(&mut node.next);
        }
    }
}
