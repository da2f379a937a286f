//! Goal: README and the book under `docs/` are consistent: every link leads somewhere, every page is in the table of
//! contents, every named file exists. Method: the pages are parsed as Markdown, in the few forms they use. Nothing is
//! downloaded: links to other hosts are not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Folders of the repository whose files pages name by path.
const FOLDERS: [&str; 9] =
    ["benches/", "data/", "deploy/", "docs/", "fuzz/", "packaging/", "src/", "systemd/", "tests/"];
/// Paths that exist only once the agent runs.
const MADE_LATER: [&str; 1] = ["data/outbox"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page, by its path in the repository.
struct Page {
    path: String,
    text: String,
}

impl Page {
    fn read(path: &str) -> Self {
        let text =
            std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { path: path.to_owned(), text }
    }

    /// Its lines outside code blocks.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut is_code = false;
        self.text.lines().filter(move |line| {
            let is_fence = line.trim_start().starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        })
    }

    /// The targets of its links and images.
    fn links(&self) -> Vec<String> {
        let mut links = Vec::new();
        for line in self.prose() {
            let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
        }
        links
    }

    /// The anchors of its headings, as forges and mdBook generate them.
    fn anchors(&self) -> BTreeSet<String> {
        let mut seen = BTreeMap::<String, u32>::new();
        let mut anchors = BTreeSet::new();
        for line in self.prose().filter(|line| line.starts_with('#')) {
            let slug = slug(line.trim_start_matches('#').trim());
            let times = seen.entry(slug.clone()).or_default();
            anchors.insert(if *times == 0 { slug } else { format!("{slug}-{times}") });
            *times += 1;
        }
        anchors
    }

    /// Its code spans that are paths in this repository.
    fn named_files(&self) -> Vec<&str> {
        let spans = self.prose().flat_map(|line| line.split('`').skip(1).step_by(2));
        let is_path = |span: &&str| {
            FOLDERS.iter().any(|folder| span.starts_with(folder)) && !span.contains([' ', '*', '<', '…', '{'])
        };
        spans.filter(is_path).map(|span| span.trim_end_matches('/')).collect()
    }
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// The Markdown files below a folder, by their paths in the repository.
fn below(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("a name in UTF-8"));
        if entry.file_type().expect("a type").is_dir() {
            found.extend(below(&path));
        } else if Path::new(&path).extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn pages() -> Vec<Page> {
    let pages: Vec<_> =
        ["README.md".to_owned()].into_iter().chain(below("docs")).map(|path| Page::read(&path)).collect();
    assert!(pages.len() > 40, "{} pages were found", pages.len());
    pages
}

/// The target of a relative link in a page, as a path in the repository.
fn resolved(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// What is wrong with a link, if anything.
fn fault(page: &Page, target: &str) -> Option<String> {
    if target.starts_with("https://") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { Some(page.path.clone()) } else { resolved(&page.path, file) };
    let Some(path) = path.filter(|path| root().join(path).is_file()) else {
        return Some("there is no such file".to_owned());
    };
    // A book contains only its own pages: other files are named by path.
    if page.path.starts_with("docs/") && !path.starts_with("docs/") {
        return Some("it leads out of the book".to_owned());
    }
    let has = anchor.is_empty() || Page::read(&path).anchors().contains(anchor);
    (!has).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_leads_to_a_page_and_a_heading() {
    let mut faults = Vec::new();
    let mut links = 0;
    for page in pages() {
        for target in page.links() {
            links += 1;
            faults.extend(fault(&page, &target).map(|fault| format!("{}: {target}: {fault}", page.path)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(links > 150, "{links} links were found");
    // The check can fail.
    let page = Page::read("docs/concepts.md");
    for wrong in ["no-such.md", "#no-such", "runbook.md#no-such", "../README.md", "http://example.com"] {
        assert!(fault(&page, wrong).is_some(), "{wrong}");
    }
}

#[test]
fn the_table_of_contents_has_every_page_once() {
    let summary = Page::read("docs/SUMMARY.md");
    let mut listed: Vec<_> = summary.links().iter().map(|link| format!("docs/{link}")).collect();
    listed.sort();
    let pages: Vec<_> = below("docs").into_iter().filter(|path| *path != summary.path).collect();
    assert_eq!(listed, pages);
}

#[test]
fn every_file_that_is_named_exists() {
    let mut missing = Vec::new();
    let mut named = 0;
    for page in pages() {
        for path in page.named_files() {
            named += 1;
            if !root().join(path).exists() && !MADE_LATER.contains(&path) {
                missing.push(format!("{}: {path}", page.path));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(named > 50, "{named} files are named");
}

#[test]
fn every_page_has_one_title_and_readme_is_short() {
    for Page { path, text } in pages() {
        assert!(text.starts_with("# "), "{path} begins with its title");
        let titles = Page { path: path.clone(), text: text.clone() };
        let titles = titles.prose().filter(|line| line.starts_with("# ")).count();
        assert!(titles == 1 || path == "docs/SUMMARY.md", "{path} has {titles} titles");
    }
    let lines = Page::read("README.md").text.lines().count();
    assert!(lines <= 150, "README has {lines} lines: the rest belongs into the book");
}

#[test]
fn the_settings_of_the_book_are_where_the_pages_are() {
    let settings: PathBuf = root().join("book.toml");
    let settings = std::fs::read_to_string(settings).expect("book.toml");
    assert!(settings.contains("src = \"docs\"\n") && settings.contains("create-missing = false\n"));
}
