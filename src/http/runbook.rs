//! The runbook as a page of the agent: it is there where problems are shown, without another host.
//!
//! The page is generated from `docs/runbook.md`, which uses few Markdown forms: headings, paragraphs, lists, tables, code
//! blocks; inline code, bold, emphasis and links. Links to the book's other pages, which are not served here, become text.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Lines;
use std::sync::LazyLock;

const SOURCE: &str = include_str!("../../docs/runbook.md");
const HEAD: &str = include_str!("pages/runbook.html");
/// The placeholder for the text.
const CONTENT: &str = "<!-- content -->";

/// The page.
pub(super) static PAGE: LazyLock<String> = LazyLock::new(|| HEAD.replacen(CONTENT, &html(SOURCE), 1));

/// The anchor of a heading, as forges and mdBook generate it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

fn html(markdown: &str) -> String {
    let (mut html, mut lines) = (String::new(), markdown.lines().peekable());
    while let Some(line) = lines.next() {
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if line.trim().is_empty() {
            continue;
        }
        if let 1..=6 = level {
            let heading = line[level..].trim();
            let _ = writeln!(html, "<h{level} id=\"{}\">{}</h{level}>", anchor(heading), inline(heading));
        } else if line.starts_with("```") {
            let code: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            let _ = writeln!(html, "<pre tabindex=\"0\">{}</pre>", escaped(&code.join("\n")));
        } else if line.starts_with('|') {
            table(&mut html, line, &mut lines);
        } else if line.starts_with("- ") {
            list(&mut html, line, &mut lines);
        } else {
            let _ = writeln!(html, "<p>{}</p>", inline(&with_rest(line, &mut lines)));
        }
    }
    html
}

/// A line joined with its continuation lines.
fn with_rest(line: &str, lines: &mut Peekable<Lines<'_>>) -> String {
    let begins_another = |line: &str| line.is_empty() || line.starts_with(['#', '|']) || is_item(line);
    let mut text = line.to_owned();
    while let Some(line) = lines.next_if(|line| !begins_another(line.trim())) {
        text.push('\n');
        text.push_str(line.trim());
    }
    text
}

fn is_item(line: &str) -> bool {
    line.starts_with("- ") || line.starts_with("```")
}

fn list(html: &mut String, first: &str, lines: &mut Peekable<Lines<'_>>) {
    html.push_str("<ul>\n");
    let mut item = Some(first);
    while let Some(line) = item {
        let text = with_rest(line.trim_start_matches("- "), lines);
        let _ = writeln!(html, "<li>{}</li>", inline(&text));
        item = lines.next_if(|line| line.starts_with("- "));
    }
    html.push_str("</ul>\n");
}

fn table(html: &mut String, head: &str, lines: &mut Peekable<Lines<'_>>) {
    let row = |html: &mut String, line: &str, cell: &str| {
        html.push_str("<tr>");
        for text in line.trim().trim_matches('|').split('|') {
            let _ = write!(html, "<{cell}>{}</{cell}>", inline(text.trim()));
        }
        html.push_str("</tr>\n");
    };
    html.push_str("<table>\n<thead>");
    row(html, head, "th");
    html.push_str("</thead>\n<tbody>\n");
    // The second line only marks the first as the heading.
    lines.next();
    while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
        row(html, line, "td");
    }
    html.push_str("</tbody>\n</table>\n");
}

/// Inline code, bold, emphasis and links. Other forms inside code are ignored.
fn inline(text: &str) -> String {
    let mut html = String::new();
    for (n, part) in text.split('`').enumerate() {
        if n % 2 == 1 {
            let code = escaped(part).replace('*', "&#42;");
            // The name of an alert links to its section.
            let is_section = part.starts_with("Dataplane") && SOURCE.contains(&format!("\n## {part}\n"));
            let _ = if is_section {
                write!(html, "<a href=\"#{}\"><code>{code}</code></a>", anchor(part))
            } else {
                write!(html, "<code>{code}</code>")
            };
        } else {
            html.push_str(&links(&escaped(part)));
        }
    }
    pairs(&pairs(&html, "**", "strong"), "*", "em")
}

/// Puts the text between each two marks into an element.
fn pairs(text: &str, mark: &str, element: &str) -> String {
    let parts: Vec<&str> = text.split(mark).collect();
    // A mark without a partner is plain text.
    if parts.len().is_multiple_of(2) {
        return text.to_owned();
    }
    let part = |(n, part): (usize, &&str)| match n % 2 {
        0 => (*part).to_owned(),
        _ => format!("<{element}>{part}</{element}>"),
    };
    parts.iter().enumerate().map(part).collect()
}

/// Keeps links within the page; other links become their text.
fn links(text: &str) -> String {
    let (mut html, mut rest) = (String::new(), text);
    while let Some((before, link)) = rest.split_once('[') {
        html.push_str(before);
        let parts = link.split_once("](").and_then(|(name, link)| Some((name, link.split_once(')')?)));
        let Some((name, (target, after))) = parts.filter(|(name, _)| !name.contains(['[', ']'])) else {
            html.push('[');
            rest = link;
            continue;
        };
        let _ = match target.strip_prefix('#') {
            Some(section) => write!(html, "<a href=\"#{section}\">{name}</a>"),
            None => write!(html, "{name}"),
        };
        rest = after;
    }
    html + rest
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_the_runbook_has_is_shown_as_what_it_is() {
        let text = "# A *b*\n\nOne `x | <y>` and\n**two** [here](#a-b), [there](redis.md).\n- first\n  goes on\n- `**`\n\n\
            | head | of |\n|---|---|\n| a | `b` |\n\n```sh\ncurl -H \"$H\" > *x*\n```\n";
        let want = "<h1 id=\"a-b\">A <em>b</em></h1>\n\
            <p>One <code>x | &lt;y&gt;</code> and\n<strong>two</strong> <a href=\"#a-b\">here</a>, there.</p>\n\
            <ul>\n<li>first\ngoes on</li>\n<li><code>&#42;&#42;</code></li>\n</ul>\n\
            <table>\n<thead><tr><th>head</th><th>of</th></tr>\n</thead>\n<tbody>\n\
            <tr><td>a</td><td><code>b</code></td></tr>\n</tbody>\n</table>\n\
            <pre tabindex=\"0\">curl -H &quot;$H&quot; &gt; *x*</pre>\n";
        assert_eq!(html(text), want);
        assert_eq!(html("2 * 3 < 7\n"), "<p>2 * 3 &lt; 7</p>\n");
    }

    #[test]
    fn every_alert_has_its_section_on_the_page_and_no_form_is_left_over() {
        let alerts = include_str!("../../data/prometheus/alerts.yml");
        let names: Vec<&str> =
            alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            assert!(PAGE.contains(&format!("<h2 id=\"{}\">{name}</h2>", name.to_lowercase())), "{name}");
        }
        assert!(!PAGE.contains(CONTENT));
        let is_left = |mark: &str| {
            let outside =
                PAGE.split("<code>").map(|part| part.split_once("</code>").map_or(part, |(_, rest)| rest));
            outside.filter(|part| !part.contains("<pre")).any(|part| part.contains(mark))
        };
        for mark in ["**", "```", "](", "|--", "`", "\n#"] {
            assert!(!is_left(mark), "{mark}");
        }
        // Links lead to existing sections.
        for target in PAGE.split("href=\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(PAGE.contains(&format!("id=\"{target}\"")), "{target}");
        }
    }
}
