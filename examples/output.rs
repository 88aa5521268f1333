//! Printing into a pipe whose reader may leave (`| head`): `println!` would panic.

use std::io::{ErrorKind, Write, stdout};

/// Runs an example that prints into what it is given. That nobody reads on is its end, and no error.
pub(crate) fn run(example: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let closed = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
    match example(&mut stdout()) {
        Err(error) if error.downcast_ref().is_some_and(closed) => Ok(()),
        done => done,
    }
}
