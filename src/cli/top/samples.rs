//! Parses the part of Prometheus' text format that an agent uses.

/// One sample.
#[derive(Debug, PartialEq)]
pub(super) struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// All samples. Invalid lines are skipped.
pub(super) fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The labels after the brace, and the rest of the line.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut chars, mut end) = (String::new(), quoted.char_indices(), None);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    end = Some(at + 1);
                    break;
                }
                '\\' => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                c => value.push(c),
            }
        }
        labels.push((name.to_owned(), value));
        rest = &quoted[end?..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_and_other_lines_skipped() {
        let text = "# HELP a b\na 1\nb{x=\"1\",y=\"a\\\"b\\\\c\\n}\"} 2.5 1700000000\nnonsense\nc{x=\"\n{} 1\nd{} NaN\n";
        let samples = parse(text);
        assert_eq!(samples.len(), 4, "{samples:?}");
        assert_eq!((&*samples[0].name, samples[0].value), ("a", 1.0));
        assert_eq!((samples[1].label("x"), samples[1].label("y")), (Some("1"), Some("a\"b\\c\n}")));
        assert_eq!((samples[1].value, samples[1].label("z")), (2.5, None));
        assert!(samples[3].value.is_nan());
    }
}
