//! Draws as SVG what the `ControlPlane` took and shed each second: a row per event, a column per strategy.

use std::fmt::Write as _;

use super::{Outcome, Scenario, Second, Strategy};

/// The size of a plot and its margins, in pixels.
const WIDTH: f64 = 250.0;
const HEIGHT: f64 = 110.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 48.0;
const GAP: f64 = 26.0;
/// The range of each plot: this many seconds, and this multiple of the capacity.
const SECONDS: f64 = 720.0;
const MOST: f64 = 2.0;
/// Seconds averaged into one point.
const STEP: usize = 6;

/// A share of the capacity to draw.
type Share = fn(&Second, &Scenario) -> f64;

/// Draws the outcomes of all strategies for each event.
pub fn draw(rows: &[(&str, Vec<Outcome>)]) -> String {
    let columns = Strategy::ALL.len() as f64;
    let width = LEFT + columns * (WIDTH + GAP);
    let height = TOP + rows.len() as f64 * (HEIGHT + GAP) + 24.0;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="11" fill="#555">
<title>Requests taken and shed by a ControlPlane of fixed capacity</title>
<text x="{LEFT}" y="14">requests that it took (blue) and shed (red), as multiples of its capacity; bytes that it took (green), as a share of it; dashed: all drained</text>
"##
    );
    for (column, strategy) in Strategy::ALL.into_iter().enumerate() {
        let x = LEFT + column as f64 * (WIDTH + GAP);
        let _ = writeln!(
            svg,
            r#"<text x="{x}" y="{}" font-weight="bold">{}</text>"#,
            TOP - 10.0,
            strategy.label()
        );
    }
    for (row, (event, outcomes)) in rows.iter().enumerate() {
        let y = TOP + row as f64 * (HEIGHT + GAP);
        let middle = y + HEIGHT / 2.0;
        let _ = writeln!(
            svg,
            r#"<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{event}</text>"#
        );
        for (column, outcome) in outcomes.iter().enumerate() {
            plot(&mut svg, LEFT + column as f64 * (WIDTH + GAP), y, outcome);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

fn plot(svg: &mut String, x: f64, y: f64, outcome: &Outcome) {
    let bottom = y + HEIGHT;
    let at = |seconds: f64| x + WIDTH * (seconds / SECONDS).min(1.0);
    let high = |share: f64| bottom - HEIGHT * (share / MOST).min(1.0);
    let (one, scenario) = (high(1.0), &outcome.scenario);
    let _ = writeln!(
        svg,
        r##"<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/><path d="M{x} {one}h{WIDTH}" stroke="#ddd"/>"##
    );
    let lines: [(&str, Share); 3] = [
        ("#1565c0", |second, scenario| f64::from(second.served) / scenario.requests),
        ("#c62828", |second, scenario| f64::from(second.shed) / scenario.requests),
        ("#2e7d32", |second, scenario| second.bytes / scenario.bytes),
    ];
    for (colour, share) in lines {
        let mut path = String::new();
        for (step, seconds) in outcome.seconds.chunks_exact(STEP).enumerate() {
            let from = (step * STEP) as f64;
            if from > SECONDS {
                break;
            }
            let mean = seconds.iter().map(|second| share(second, scenario)).sum::<f64>() / STEP as f64;
            let _ =
                write!(path, "{}{:.1} {:.1}", if path.is_empty() { "M" } else { "L" }, at(from), high(mean));
        }
        let _ = writeln!(svg, r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.2"/>"#);
    }
    if let Some(drained) = outcome.drained(1.0).filter(|at| *at <= SECONDS) {
        let _ = writeln!(
            svg,
            r##"<path d="M{:.1} {y}v{HEIGHT}" stroke="#555" stroke-dasharray="3 3"/>"##,
            at(drained)
        );
    }
    for (seconds, anchor) in [(0.0, "start"), (SECONDS / 2.0, "middle"), (SECONDS, "end")] {
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{}" text-anchor="{anchor}" font-size="9">{seconds} s</text>"#,
            at(seconds),
            bottom + 11.0
        );
    }
}
