//! The pure part of the report: figures in, Markdown out. Tested by `tests/it/benchmarks.rs`.

use serde::{Deserialize, Serialize};

/// A row of a table as one run measured it: columns and values. Without any, the row says what was not measured, and why.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) table: String,
    pub(crate) row: String,
    pub(crate) figures: Vec<(String, f64)>,
}

/// Whole numbers with thousands separators; smaller values with three digits.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 99.95 && value.fract() != 0.0 {
        let decimals = if value.abs() < 9.995 { 2 } else { 1 };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// The median of the runs, with the least and the most if they differ.
pub(crate) fn cell(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return String::new() };
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    let [median, least, most] = [median, *least, *most].map(number);
    if least == most { median } else { format!("{median} ({least} to {most})") }
}

/// A table of all runs, its rows in the order in which they were first measured, its columns in that of the longest row.
pub(crate) fn render(measured: &[Measured], table: &str) -> String {
    let of_table = || measured.iter().filter(|row| row.table == table);
    let rows = distinct(of_table().filter(|row| !row.figures.is_empty()).map(|row| row.row.as_str()));
    let mut longest: Vec<_> = of_table().map(|row| &row.figures).collect();
    longest.sort_by_key(|figures| std::cmp::Reverse(figures.len()));
    let columns = distinct(longest.into_iter().flatten().map(|(column, _)| column.as_str()));
    let mut text = String::new();
    if !rows.is_empty() {
        text = format!("| | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    }
    for name in rows {
        let values = |wanted: &str| {
            let figures = of_table().filter(|row| row.row == name).flat_map(|row| &row.figures);
            figures.filter(|(column, _)| column == wanted).map(|(_, value)| *value).collect()
        };
        let cells: Vec<String> = columns.iter().map(|column| cell(values(column))).collect();
        text = format!("{text}| {name} | {} |\n", cells.join(" | "));
    }
    for missing in distinct(of_table().filter(|row| row.figures.is_empty()).map(|row| row.row.as_str())) {
        text = format!("{text}\nNot measured: {missing}.\n");
    }
    if text.is_empty() { "Not measured.".to_owned() } else { text }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for name in names {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    distinct
}

/// Replaces what is between `<!-- begin NAME: … -->` and `<!-- end NAME -->` by the section of that name.
pub(crate) fn fill(page: &str, section: impl Fn(&str) -> String) -> Result<String, String> {
    let mut text = String::new();
    let mut lines = page.split_inclusive('\n');
    while let Some(line) = lines.next() {
        text.push_str(line);
        let Some((name, _)) = line.strip_prefix("<!-- begin ").and_then(|rest| rest.split_once(':')) else {
            continue;
        };
        let end = format!("<!-- end {name} -->");
        let last = lines.find(|line| line.trim_end() == end).ok_or(format!("{end} is missing"))?;
        text = format!("{text}\n{}\n\n{last}", section(name).trim_end());
    }
    Ok(text)
}
