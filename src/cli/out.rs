//! What a command prints: the one way to standard output, and an end without a word when nobody reads it any more.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// Whoever read what is printed has read enough: `… | head`.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads any more")]
pub(super) struct Enough;

/// Prints text as it is.
pub(super) fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Enough.into()),
        printed => Ok(printed?),
    }
}

/// Prints a line; best by [`say`].
pub(super) fn line(text: Arguments<'_>) -> anyhow::Result<()> {
    print(format!("{text}\n").as_bytes())
}

/// Prints a line, as `println!` does, which would panic when nobody reads any more.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::out::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints a value for machines.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say!("{}", serde_json::to_string(value)?)
}
