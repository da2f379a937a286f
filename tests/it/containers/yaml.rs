//! Parses the YAML used by the manifests: block maps and lists, inline lists, plain and quoted scalars. Anything else is an
//! error, so nothing is misread.

use serde_json::{Map, Value};

#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
}

/// The documents of a file.
pub(super) fn documents(path: &str, text: &str) -> Vec<Value> {
    assert!(!text.contains('\t'), "{path}: a tab");
    let parts = text.split("\n---\n").map(|part| {
        let lines =
            part.lines().map(|line| Line { indent: indent(line), text: without_comment(line).trim() });
        let lines: Vec<_> = lines.filter(|line| !line.text.is_empty()).collect();
        let mut at = 0;
        let value = block(path, &lines, &mut at);
        assert_eq!(
            at,
            lines.len(),
            "{path}: what is at {}?",
            lines.get(at).map_or("the end", |line| line.text)
        );
        value
    });
    parts.collect()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    // None of the quoted texts contains a #.
    line.split(" #").next().unwrap_or_default()
}

fn block(path: &str, lines: &[Line<'_>], at: &mut usize) -> Value {
    let Some(first) = lines.get(*at) else { return Value::Null };
    let own = first.indent;
    let is_own = |at: usize| lines.get(at).is_some_and(|line| line.indent == own);
    if first.text.starts_with("- ") {
        let mut items = Vec::new();
        while is_own(*at) && lines[*at].text.starts_with("- ") {
            let text = &lines[*at].text[2..];
            if is_member(text) {
                // The item is a map whose first member follows the dash.
                let begin = *at;
                let mut item = vec![Line { indent: own + 2, text }];
                *at += 1;
                while lines.get(*at).is_some_and(|line| line.indent > own) {
                    item.push(lines[*at]);
                    *at += 1;
                }
                let mut inner = 0;
                items.push(block(path, &item, &mut inner));
                assert_eq!(inner, item.len(), "{path}: the list's item at {}", lines[begin].text);
            } else {
                items.push(scalar(path, text));
                *at += 1;
            }
        }
        return Value::Array(items);
    }
    let mut fields = Map::new();
    while is_own(*at) && is_member(lines[*at].text) {
        let (name, rest) = lines[*at].text.split_once(':').expect("a member");
        *at += 1;
        let value = match rest.trim() {
            "" if lines.get(*at).is_some_and(|line| line.indent > own) => block(path, lines, at),
            "" => panic!("{path}: {name} has no value"),
            rest => scalar(path, rest),
        };
        assert!(fields.insert(name.to_owned(), value).is_none(), "{path}: {name} is there twice");
    }
    assert!(!fields.is_empty(), "{path}: neither a map nor a list: {}", first.text);
    Value::Object(fields)
}

fn is_member(text: &str) -> bool {
    let name = text.split(':').next().unwrap_or_default();
    let is_named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    is_named && (text.ends_with(':') || text[name.len()..].starts_with(": "))
}

fn scalar(path: &str, text: &str) -> Value {
    if text.starts_with(['"', '[', '{']) {
        return serde_json::from_str(text).unwrap_or_else(|error| panic!("{path}: {text}: {error}"));
    }
    assert!(
        !text.starts_with(['\'', '|', '>', '&', '*', '!', '%', '@', '`']),
        "{path}: not read here: {text}"
    );
    assert!(
        !matches!(text, "yes" | "no" | "on" | "off" | "~"),
        "{path}: {text} means something else to some"
    );
    match text {
        "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        text => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::documents;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read() {
        let text = "a:\n  - b: 1\n    c: [\"x\"] # two\n  - d\ne:\n  f.g/h: \"1\"\n# end\n";
        assert_eq!(documents("t", text), [json!({"a": [{"b": 1, "c": ["x"]}, "d"], "e": {"f.g/h": "1"}})]);
    }
}
