//! Parses as much PromQL as shows which series a query needs. promtool checks whether it is valid PromQL.

use std::collections::BTreeSet;

/// A metric's name and its label matchers: name, operator, value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) metric: String,
    pub(super) matchers: Vec<(String, String, String)>,
}

/// The needs of a query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) selectors: Vec<Selector>,
    /// Labels used for grouping or matching.
    pub(super) labels: BTreeSet<String>,
}

const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words followed by something other than a parenthesis.
const WORDS: &str = "and or unless bool offset sum min max avg count topk bottomk quantile stddev";

pub(super) fn asked(query: &str) -> Asked {
    let mut asked = Asked::default();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || first == '_' {
            let (name, after) = word(rest);
            rest = after.trim_start();
            if GROUPING.contains(&name) && rest.starts_with('(') {
                let (labels, after) = rest[1..].split_once(')').expect("a closing parenthesis");
                let labels = labels.split(',').map(|label| label.trim().to_owned());
                asked.labels.extend(labels.filter(|label| !label.is_empty()));
                rest = after;
            } else if !rest.starts_with('(') && !WORDS.split(' ').any(|word| word == name) {
                let matchers = if rest.starts_with('{') { matchers(&mut rest) } else { Vec::new() };
                asked.selectors.push(Selector { metric: name.to_owned(), matchers });
            }
        } else if first.is_ascii_digit() {
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if first == '[' {
            rest = rest.split_once(']').expect("a closing bracket").1;
        } else {
            assert!(first != '{', "a selector without a name: {query}");
            rest = &rest[first.len_utf8()..];
        }
    }
    asked
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

fn matchers(rest: &mut &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    loop {
        *rest = rest.trim_start_matches(['{', ',', ' ', '\n']);
        if let Some(after) = rest.strip_prefix('}') {
            *rest = after;
            return found;
        }
        let (label, after) = word(rest);
        let (operator, after) = after.split_once('"').expect("a value in quotes");
        let (value, after) = after.split_once('"').expect("the end of a value");
        found.push((label.to_owned(), operator.trim().to_owned(), value.to_owned()));
        *rest = after;
    }
}

#[test]
fn a_query_is_taken_apart() {
    let of = |query: &str| {
        let asked = asked(query);
        let selectors = asked.selectors.iter().map(|selector| {
            let labels = selector.matchers.iter().map(|(label, op, value)| format!("{label}{op}{value}"));
            format!("{}[{}]", selector.metric, labels.collect::<Vec<_>>().join(" "))
        });
        (selectors.collect::<Vec<_>>().join(" "), asked.labels.into_iter().collect::<Vec<_>>().join(" "))
    };
    let pair = |selectors: &str, labels: &str| (selectors.to_owned(), labels.to_owned());
    assert_eq!(of("a_total"), pair("a_total[]", ""));
    assert_eq!(
        of(r#"sum by (le, kind) (rate(b{x="1", y=~"2|3"}[5m])) / on (z) c > 1e3"#),
        pair("b[x=1 y=~2|3] c[]", "kind le z")
    );
    assert_eq!(
        of("topk(10, a) and max_over_time(b[15m]) == 0 unless predict_linear(c[1h], 4 * 3600) < 7d"),
        pair("a[] b[] c[]", "")
    );
    assert_eq!(of("sum without (kind) (d) + time() - e offset 5m"), pair("d[] e[]", "kind"));
}
