//! Reads JSON text as tokens: unchanged parts can be forwarded verbatim.
//!
//! One pass, no recursion, no allocation. A level of nesting is one bit of a `u64`, which limits the depth to 64.

use std::borrow::Cow;

/// The deepest nesting accepted. The record's object is level 1.
pub(crate) const MAX_DEPTH: u32 = 64;

/// White space as JSON defines it (Unicode has more).
pub(super) const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// Why a text is not one JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not JSON: {what} at byte {at}")]
    Syntax { what: &'static str, at: usize },
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("must be a JSON object, found {0}")]
    NotAnObject(&'static str),
}

/// A JSON value as it appears in its text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// The value's own bytes, quotes included.
    pub(super) raw: &'a str,
    /// Its position in its text.
    pub(super) at: usize,
    /// Whether it is a string with escapes.
    pub(super) escaped: bool,
}

impl<'a> Token<'a> {
    /// Its type as text.
    pub(super) fn what(self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    pub(super) fn is_null(self) -> bool {
        self.raw == "null"
    }

    /// Its string, or its type if it is not a string.
    pub(super) fn string(self) -> Result<Cow<'a, str>, &'static str> {
        if !self.raw.starts_with('"') {
            return Err(self.what());
        }
        if self.escaped {
            // The grammar has been checked: only half a surrogate pair can still be wrong.
            return serde_json::from_str(self.raw)
                .map(Cow::Owned)
                .map_err(|_| "a string with half a surrogate pair (\\ud800 to \\udfff)");
        }
        Ok(Cow::Borrowed(self.quoted()))
    }

    /// The text between the quotes.
    fn quoted(self) -> &'a str {
        &self.raw[1..self.raw.len() - 1]
    }
}

/// A name and value of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    pub(super) key: Token<'a>,
    pub(super) value: Token<'a>,
}

impl<'a> Member<'a> {
    /// The member's name. A name with half a surrogate pair is returned raw: it matches no known name.
    pub(super) fn name(&self) -> Cow<'a, str> {
        self.key.string().unwrap_or(Cow::Borrowed(self.key.raw))
    }
}

/// Iterates over the members of a text's only object.
pub(super) struct Members<'a> {
    scanner: Scanner<'a>,
    progress: Progress,
}

enum Progress {
    Opened,
    Between,
    Done,
}

impl<'a> Members<'a> {
    pub(super) fn of(text: &'a str) -> Result<Self, Malformed> {
        let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0 };
        scanner.space();
        if scanner.peek() != Some(b'{') {
            let value = scanner.value(0)?;
            scanner.end()?;
            return Err(Malformed::NotAnObject(value.what()));
        }
        scanner.at += 1;
        Ok(Self { scanner, progress: Progress::Opened })
    }

    fn step(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        let scanner = &mut self.scanner;
        scanner.space();
        match (&self.progress, scanner.peek()) {
            (Progress::Done, _) => return Ok(None),
            (_, Some(b'}')) => {
                self.progress = Progress::Done;
                scanner.at += 1;
                scanner.end()?;
                return Ok(None);
            }
            (Progress::Between, Some(b',')) => {
                scanner.at += 1;
                scanner.space();
            }
            (Progress::Between, _) => return Err(scanner.expected("expected a comma or a closing brace")),
            (Progress::Opened, _) => {}
        }
        self.progress = Progress::Between;
        let key = scanner.key()?;
        scanner.space();
        let value = scanner.value(1)?;
        Ok(Some(Member { key, value }))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.progress = Progress::Done;
        }
        step.transpose()
    }
}

/// Whether the whole text is a JSON number.
pub(super) fn is_number(text: &str) -> bool {
    let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0 };
    scanner.number().is_ok() && scanner.at == text.len()
}

/// Appends a member to an object. `name` and `value` are JSON.
pub(super) fn write_member(out: &mut Vec<u8>, name: &str, value: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    out.extend_from_slice(value.as_bytes());
}

/// Appends a member to an object, with its name as the producer wrote it.
pub(super) fn copy_member(out: &mut Vec<u8>, key: Token<'_>, value: &str) {
    write_member(out, key.quoted(), value);
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// The error at this position; "cut off" if the text ends here.
    fn expected(&self, what: &'static str) -> Malformed {
        let what = if self.at >= self.bytes.len() { "cut off" } else { what };
        Malformed::Syntax { what, at: self.at }
    }

    /// Requires that only white space follows.
    fn end(&mut self) -> Result<(), Malformed> {
        self.space();
        if self.at < self.bytes.len() {
            return Err(self.expected("trailing data"));
        }
        Ok(())
    }

    /// A member's name and its colon.
    fn key(&mut self) -> Result<Token<'a>, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("expected a name in double quotes"));
        }
        let start = self.at;
        let escaped = self.string()?;
        let key = Token { raw: &self.text[start..self.at], at: start, escaped };
        self.space();
        if self.peek() != Some(b':') {
            return Err(self.expected("expected a colon"));
        }
        self.at += 1;
        Ok(key)
    }

    /// A value of any type, inside `outer` open brackets.
    fn value(&mut self, outer: u32) -> Result<Token<'a>, Malformed> {
        let start = self.at;
        let escaped = match self.peek() {
            Some(b'"') => self.string()?,
            Some(b'{' | b'[') => self.container(outer).map(|()| false)?,
            _ => self.scalar().map(|()| false)?,
        };
        Ok(Token { raw: &self.text[start..self.at], at: start, escaped })
    }

    /// An array or object with its contents.
    fn container(&mut self, outer: u32) -> Result<(), Malformed> {
        let mut depth = outer;
        let mut objects = 0u64; // a bit for each open bracket, the innermost lowest: set for a brace
        loop {
            // A value is expected.
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    if depth == MAX_DEPTH {
                        return Err(Malformed::TooDeep);
                    }
                    depth += 1;
                    let object = open == b'{';
                    objects = objects << 1 | u64::from(object);
                    self.at += 1;
                    self.space();
                    match self.peek() {
                        Some(b'}') if object => {}
                        Some(b']') if !object => {}
                        _ => {
                            self.begin_item(object)?;
                            continue;
                        }
                    }
                }
                Some(b'"') => {
                    self.string()?;
                    self.space();
                }
                _ => {
                    self.scalar()?;
                    self.space();
                }
            }
            // The value is complete, or its container is empty: close all brackets that end here.
            loop {
                let object = objects & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        self.space();
                        self.begin_item(object)?;
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ if object => return Err(self.expected("expected a comma or a closing brace")),
                    _ => return Err(self.expected("expected a comma or a closing bracket")),
                }
                self.at += 1;
                objects >>= 1;
                depth -= 1;
                if depth == outer {
                    return Ok(());
                }
                self.space();
            }
        }
    }

    /// Reads what precedes a value: its name in an object, nothing in an array.
    fn begin_item(&mut self, object: bool) -> Result<(), Malformed> {
        if object {
            self.key()?;
            self.space();
        }
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), Malformed> {
        let word = match self.peek() {
            Some(b't') => "true",
            Some(b'f') => "false",
            Some(b'n') => "null",
            Some(b'-' | b'0'..=b'9') => return self.number(),
            _ => return Err(self.expected("expected a value")),
        };
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// A string; returns whether it has escapes.
    fn string(&mut self) -> Result<bool, Malformed> {
        self.at += 1;
        let mut escaped = false;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.expected("control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
            Some(b'u') => {
                for _ in 0..4 {
                    self.at += 1;
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.expected("expected four hexadecimal digits after \\u"));
                    }
                }
            }
            _ => return Err(self.expected("unknown escape")),
        }
        self.at += 1;
        Ok(())
    }

    fn number(&mut self) -> Result<(), Malformed> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// One or more digits.
    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.expected("expected a digit")) } else { Ok(()) }
    }
}
