//! Goal: the written parts of `docs/benchmarks.md` say what the benches measured. Method: the benches' pure part, from
//! figures to the page.

#[path = "../../benches/main_job/report/tables.rs"]
mod tables;

use tables::{Measured, cell, fill, number, render};

fn measured(row: &str, figures: &[(&str, f64)]) -> Measured {
    let figures = figures.iter().map(|&(column, value)| (column.to_owned(), value)).collect();
    Measured { table: "t".to_owned(), row: row.to_owned(), figures }
}

#[test]
fn a_number_keeps_three_digits_and_separates_thousands() {
    let numbers = [0.0, 3.0, 0.284, 9.996, 41.25, 99.96, 123.4, 3_310.4, 170_900.2, 1_000_000.0].map(number);
    assert_eq!(numbers, ["0", "3", "0.28", "10.0", "41.2", "100", "123", "3,310", "170,900", "1,000,000"]);
}

#[test]
fn a_cell_is_the_median_with_the_least_and_the_most() {
    assert_eq!(cell(vec![5.0, 1.0, 30.0, 2.0, 4.0]), "4 (1 to 30)");
    assert_eq!(cell(vec![1.0, 2.0]), "1.50 (1 to 2)");
    assert_eq!(cell(vec![0.0, 0.0]), "0");
    assert_eq!(cell(vec![]), "");
}

#[test]
fn runs_become_one_row_and_what_is_missing_is_named_once() {
    let mut rows = Vec::new();
    for (run, rate) in [(1.0, 10.0), (2.0, 40.0), (3.0, 20.0)] {
        rows.push(measured("loop", &[("records/s", rate)]));
        rows.push(measured("agent", &[("× the loop", 49.0 + run), ("records/s", rate * 50.0)]));
        rows.push(measured("loss: needs root", &[]));
    }
    rows.push(Measured { table: "other".to_owned(), ..measured("agent", &[("records/s", 9.0)]) });
    let expected = "\
| | × the loop | records/s |
|---|---|---|
| loop |  | 20 (10 to 40) |
| agent | 51 (50 to 52) | 1,000 (500 to 2,000) |

Not measured: loss: needs root.
";
    assert_eq!(render(&rows, "t"), expected);
    assert_eq!(render(&rows, "none"), "Not measured.");
}

#[test]
fn only_what_is_between_markers_is_replaced() {
    let page = "# A\n<!-- begin t: by the report -->\nold\n<!-- end t -->\nprose\n<!-- begin u: -->\n<!-- end u -->\n";
    let filled = fill(page, |name| format!("new {name}\n")).unwrap();
    let expected = "# A\n<!-- begin t: by the report -->\n\nnew t\n\n<!-- end t -->\nprose\n<!-- begin u: -->\n\nnew u\n\n<!-- end u -->\n";
    assert_eq!(filled, expected);
    assert_eq!(fill(&filled, |name| format!("new {name}")).unwrap(), expected, "again");
    assert_eq!(fill("<!-- begin t: -->\nold\n", |_| String::new()).unwrap_err(), "<!-- end t --> is missing");
}

#[test]
fn every_table_of_the_pages_is_one_that_the_benches_measure() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect(path);
    let sections = std::cell::RefCell::new(Vec::new());
    for page in ["README.md", "docs/benchmarks.md"] {
        fill(&read(page), |name| {
            sections.borrow_mut().push(name.to_owned());
            String::new()
        })
        .unwrap();
    }
    assert!(sections.borrow().len() > 8, "{sections:?}");
    let sources = [
        "throughput",
        "intake",
        "latency",
        "outage",
        "outbox",
        "report",
        "wan",
        "wan/measure",
        "wan/lossy",
        "peers",
    ];
    let sources = sources.map(|name| read(&format!("benches/main_job/{name}.rs"))).concat();
    for section in sections.into_inner() {
        assert!(sources.contains(&format!("\"{section}\"")), "{section}");
    }
}
