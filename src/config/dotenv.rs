//! Reads `.env` files by the rules of python-dotenv, which the previous agent used.
//!
//! Those files contain what stricter readers reject or change: unquoted values with spaces, backslashes and dollar signs in
//! passwords, an apostrophe in a name. They keep their meaning here:
//!
//! * `export` before a name, blanks around `=`, and comment lines are allowed;
//! * an unquoted value extends to the end of the line or to ` #`, and has no special characters;
//! * `'…'` has the escapes `\'` and `\\`; `"…"` also `\n` and the like; both may span lines;
//! * `${NAME}` and `${NAME:-default}` expand to the value of an earlier line or of the environment;
//! * the last line of a name wins; a line that cannot be parsed is skipped.

use std::collections::BTreeMap;

/// The values in a file. Names are in upper case: the previous agent ignored case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dotenv {
    pub(super) values: BTreeMap<String, String>,
    /// The skipped lines, numbered from 1.
    pub(super) skipped: Vec<usize>,
}

/// Parses a file's text. `environment` resolves names that the file does not define.
pub(super) fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Dotenv {
    let text = text.trim_start_matches('\u{feff}');
    let mut found = Dotenv::default();
    let mut rest = text;
    while !rest.is_empty() {
        let line = text[..text.len() - rest.len()].matches('\n').count() + 1;
        match statement(rest) {
            Some(Statement { binding, after }) => {
                if let Some((name, value)) = binding {
                    let value = expand(&value, |name| {
                        found.values.get(&name.to_ascii_uppercase()).cloned().or_else(|| environment(name))
                    });
                    found.values.insert(name.to_ascii_uppercase(), value);
                }
                rest = after;
            }
            None => {
                found.skipped.push(line);
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
            }
        }
    }
    found
}

struct Statement<'a> {
    binding: Option<(String, String)>,
    after: &'a str,
}

/// Parses one statement, usually one line, from the front; `None` if it is invalid.
fn statement(text: &str) -> Option<Statement<'_>> {
    let (line, after) = text.split_once('\n').unwrap_or((text, ""));
    let line = line.trim_start();
    if line.is_empty() || line.starts_with('#') {
        return Some(Statement { binding: None, after });
    }
    let line =
        line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t'])).unwrap_or(line).trim();
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end().trim_matches('\'');
    if name.is_empty() || name.contains(char::is_whitespace) || name.contains(['#', '"', '\'']) {
        return None;
    }
    let value = value.trim_start();
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        let end = comment_start(value).unwrap_or(value.len());
        let value = value[..end].trim_end().to_owned();
        return Some(Statement { binding: Some((name.to_owned(), value)), after });
    };
    // A quoted value may continue on the next lines: it is read from the text, not from the line.
    let opening = text.find('=').and_then(|equals| text[equals..].find(quote).map(|at| equals + at))?;
    let (value, tail) = quoted(&text[opening + 1..], quote)?;
    let (end, after) = tail.split_once('\n').unwrap_or((tail, ""));
    let end = end.trim();
    (end.is_empty() || end.starts_with('#'))
        .then(|| Statement { binding: Some((name.to_owned(), value)), after })
}

/// The start of an unquoted value's comment: a `#` after a blank. A `#` at the value's start belongs to the value.
fn comment_start(value: &str) -> Option<usize> {
    let mut blank_before = false;
    value.char_indices().find_map(|(at, c)| {
        let starts = c == '#' && blank_before;
        blank_before = c.is_whitespace();
        starts.then_some(at)
    })
}

/// Reads up to the closing quote. Returns the value and the text after the quote.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Some((value, &text[at + 1..]));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let (_, escaped) = chars.next()?;
        match (quote, escaped) {
            ('"', 'n') => value.push('\n'),
            ('"', 'r') => value.push('\r'),
            ('"', 't') => value.push('\t'),
            (_, '\\' | '\'') | ('"', '"') => value.push(escaped),
            _ => value.extend(['\\', escaped]),
        }
    }
    None
}

/// Replaces `${NAME}` and `${NAME:-default}`. A lone `$` is a dollar sign.
fn expand(value: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, reference)) = rest.split_once("${") {
        let Some((inside, after)) = reference.split_once('}') else { break };
        let (name, default) = inside.split_once(":-").unwrap_or((inside, ""));
        expanded.push_str(before);
        expanded.push_str(&lookup(name).unwrap_or_else(|| default.to_owned()));
        rest = after;
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Dotenv {
        parse(text, |name| (name == "HOME").then(|| "/root".to_owned()))
    }

    #[track_caller]
    fn reads(line: &str, value: &str) {
        let found = read(line);
        assert_eq!(found.values.get("A").map(String::as_str), Some(value), "{line}");
        assert_eq!(found.skipped, [0; 0], "{line}");
    }

    #[test]
    fn values_mean_what_they_meant_to_the_previous_agent() {
        reads("A=DataPlane Agent", "DataPlane Agent");
        reads("A=Bob's agent", "Bob's agent");
        reads("A=p$ss\\word#1", "p$ss\\word#1");
        reads("A=1 # one", "1");
        reads("A=#x", "#x");
        reads("A= # nothing", "# nothing");
        reads("A=", "");
        reads("A=x=y", "x=y");
        reads("  export  A = 'it\\'s # here'  # said", "it's # here");
        reads("'A'=1", "1");
        reads("a=1", "1");
        reads("A=\"a\\n\\\"b\\\" \\d\"", "a\n\"b\" \\d");
        reads("A=\"-----BEGIN\nabc\n-----END\"\r\nB=2", "-----BEGIN\nabc\n-----END");
        reads("\u{feff}A=1\r\n", "1");
        reads("A=1\nA=2", "2");
        reads("A=${HOME}/x${NONE:-y}${NONE}$Z", "/root/xy$Z");
        reads("B=b\nA='${B}c'", "bc");
        reads("A=${", "${");
        reads("export=1\nA=2", "2");
    }

    #[test]
    fn an_invalid_line_is_skipped_and_its_number_kept() {
        let found = read("# fine\n\nnonsense\nA=1\nB='open\nC=\"x\" y\n=1\nD=4");
        assert_eq!(found.skipped, [3, 5, 6, 7]);
        let names: Vec<_> = found.values.keys().map(String::as_str).collect();
        assert_eq!(names, ["A", "D"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_hang(text in "(?s)[A=\"'\\\\#\\n\\r ${}:é-]{0,60}") {
            read(&text);
        }

        #[test]
        fn quoted_text_round_trips(value in "[^\\x00\\\\'$]{0,40}") {
            let found = read(&format!("A='{value}'\nB=1"));
            prop_assert_eq!(found.values.get("A"), Some(&value));
            prop_assert_eq!(found.values.len(), 2);
        }
    }
}
