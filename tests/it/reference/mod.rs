//! Goal: the book's reference pages match the program. Method: each page is generated and compared with its file. With
//! `BLESS=1` the tests write the files: `BLESS=1 cargo test --test it reference`.

mod command_line;
mod configuration;
mod metrics;

use std::path::Path;

/// Asserts that the page is as generated; with `BLESS=1` writes it.
pub(crate) fn assert_page(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&file, expected).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let at = differs.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("the end").to_owned();
    assert!(
        found == expected,
        "{path} is not what the program says: BLESS=1 with this test writes it. Line {} is\n  {}\nand should be\n  {}",
        at + 1,
        line(&found),
        line(expected)
    );
}

/// A text that is valid in a table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
