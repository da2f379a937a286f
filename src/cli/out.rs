//! Writes the output of commands: the only path to standard output. Ends quietly when the reader has gone.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};

/// The reader closed the output, as in `… | head`.
#[derive(Debug, thiserror::Error)]
#[error("the output was closed")]
pub(super) struct Enough;

/// Prints text unchanged.
pub(super) fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Enough.into()),
        printed => Ok(printed?),
    }
}

/// Prints lines for people; use [`say`]. Removes control characters: producers and servers must not drive the terminal.
pub(super) fn line(text: Arguments<'_>) -> anyhow::Result<()> {
    print(shown(&format!("{text}\n")).as_bytes())
}

/// The text without control characters.
fn shown(text: &str) -> String {
    let is_shown = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_shown(c) { c } else { '\u{fffd}' }).collect()
}

/// Prints a line like `println!`, which would panic when the reader has gone.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::out::line(format_args!($($text)*)) };
}
pub(super) use say;

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    print(&text)
}

/// Notes on standard error that a list ends at its limit.
pub(super) fn say_limited(limit: usize) {
    eprintln!("the list ends at {limit}, and there are more: see --limit");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_text_never_controls_the_terminal() {
        let said = "s-1\u{1b}]52;c;aGk=\u{7}\u{9b}2J\rforged\n\tt-ä";
        assert_eq!(shown(said), "s-1\u{fffd}]52;c;aGk=\u{fffd}\u{fffd}2J\u{fffd}forged\n\tt-ä");
    }
}
