//! `make bench-report`: runs the parts that belong in docs/benchmarks.md several times, and writes its tables and README's.
//!
//! Each part of each run is a process of its own, this binary started again: its memory is its own, and if it fails the
//! others go on. Its figures are appended, a JSON object a line, to the file that [`FILE`] names.
//!
//! `BENCH_RUNS` (5) says how many runs; `BENCH_PARTS` picks the parts whose name contains one of its words; `BENCH_DIVISOR`
//! divides the numbers of records.

use std::io::Write as _;
use std::process::Command;

pub(crate) mod tables;

use tables::{Measured, fill, render};

pub(crate) use tables::number;

/// Columns of several tables, each the unit too.
pub(crate) const RATE: &str = "records/s";
pub(crate) const MICROS: &str = "µs of processor time a record";
pub(crate) const PEAK: &str = "MiB at the peak";

const FILE: &str = "BENCH_FIGURES";
const PARTS: [&str; 9] =
    ["throughput", "intake", "single", "latency", "quota", "outage", "outbox-1m", "wan", "peers"];
const PAGES: [&str; 2] = ["docs/benchmarks.md", "README.md"];
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

/// So many records, or fewer if `BENCH_DIVISOR` says so.
pub(crate) fn scaled(records: u32) -> u32 {
    records / setting("BENCH_DIVISOR", 1)
}

/// Prints a row of a table, each figure with its column's name, and records it for the report.
pub(crate) fn row(table: &str, row: &str, figures: &[(&str, f64)]) {
    let said: Vec<String> =
        figures.iter().map(|(column, value)| format!("{} {column}", number(*value))).collect();
    println!("  {row}: {}", said.join(", "));
    record(table, row, figures);
}

/// Says what of a table is not measured, and why.
pub(crate) fn not_measured(table: &str, why: &str) {
    println!("  NOT MEASURED: {why}");
    record(table, why, &[]);
}

fn record(table: &str, row: &str, figures: &[(&str, f64)]) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let figures = figures.iter().map(|&(column, value)| (column.to_owned(), value)).collect();
    let measured = Measured { table: table.to_owned(), row: row.to_owned(), figures };
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("the figures' file");
    writeln!(file, "{}", serde_json::to_string(&measured).expect("JSON")).expect("it is written");
}

pub(crate) fn run() {
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/bench-figures.jsonl");
    std::fs::write(path, "").expect("the figures' file");
    let words = std::env::var("BENCH_PARTS").unwrap_or_default();
    let is_wanted =
        |part: &&str| words.is_empty() || words.split_whitespace().any(|word| part.contains(word));
    let (runs, reduced) = (setting("BENCH_RUNS", 5), settings().any(|(name, _)| name != "BENCH_RUNS"));
    let mut machine = machine(runs, reduced);
    let mut failed = Vec::new();
    for run in 1..=runs {
        for part in PARTS.into_iter().filter(is_wanted) {
            println!("--- run {run} of {runs}: {part} ---");
            let itself = std::env::current_exe().expect("this binary");
            let status = Command::new(itself).arg(part).env(FILE, path).status().expect("it starts");
            if !status.success() {
                failed.push(format!("{part} in run {run}"));
            }
        }
    }
    let failed = failed.join(", ");
    if !failed.is_empty() {
        machine = format!("{machine}| failed | **{failed}** |\n");
    }
    let figures = std::fs::read_to_string(path).expect("the figures");
    let measured: Vec<Measured> =
        figures.lines().map(|line| serde_json::from_str(line).expect("figures")).collect();
    // A part is enough for the page, which says so; README has no room for that.
    for page in PAGES.into_iter().take(if reduced { 1 } else { 2 }) {
        let page = format!("{ROOT}/{page}");
        let text = std::fs::read_to_string(&page).expect("a page");
        let section = |name: &str| if name == "machine" { machine.clone() } else { render(&measured, name) };
        std::fs::write(&page, fill(&text, section).expect("markers")).expect("it is written");
        println!("written: {page}");
    }
    assert!(failed.is_empty(), "failed: {failed}");
}

/// What the environment changes of the report.
fn settings() -> impl Iterator<Item = (String, String)> {
    std::env::vars().filter(|(name, _)| name.starts_with("BENCH_") || name.starts_with("WAN_"))
}

/// What the figures are of.
fn machine(runs: u32, reduced: bool) -> String {
    let proc = |file: &str, field: &str| {
        let text = std::fs::read_to_string(format!("/proc/{file}")).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
        line.rsplit(": ").next().unwrap_or_default().trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = proc("meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or_default();
    let file_system =
        |path: &str| said("df", &["--output=fstype", path]).lines().last().unwrap_or_default().to_owned();
    let temporary = std::env::temp_dir().display().to_string();
    let mut settings: Vec<String> = settings().map(|(name, value)| format!("{name}='{value}' ")).collect();
    settings.sort();
    let version = |program| said(program, &["--version"]).lines().next().unwrap_or_default().to_owned();
    let commit = said("git", &["-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"]);
    let [outboxes, outbox] = [&temporary, env!("CARGO_TARGET_TMPDIR")].map(file_system);
    let scope =
        if reduced { "**parts or sizes are reduced by the command**" } else { "everything, at full size" };
    let facts = [
        ("processors", format!("{processors}, {}", proc("cpuinfo", "model name"))),
        ("memory", format!("{:.1} GiB", memory / f64::from(1 << 20))),
        ("kernel", format!("Linux {}", proc("sys/kernel/osrelease", ""))),
        ("file systems", format!("{outboxes} (`{temporary}`), {outbox} (the outbox alone)")),
        ("agent", format!("{}, commit {commit}", env!("CARGO_PKG_VERSION"))),
        ("compiler", version("rustc")),
        ("Redis", version("redis-server")),
        ("syslog-ng", version("syslog-ng")),
        ("date", chrono::Utc::now().date_naive().to_string()),
        ("command", format!("`{}make bench-report`", settings.concat())),
        ("runs", runs.to_string()),
        ("scope", scope.to_owned()),
    ];
    let rows: Vec<String> = facts.iter().map(|(name, fact)| format!("| {name} | {fact} |\n")).collect();
    format!("| | |\n|---|---|\n{}", rows.concat())
}

/// A program's output.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or("not installed".to_owned(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}
