//! Draws the view, as a pure function of it. Colour only repeats the text.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, LineGauge, Paragraph, Row, Sparkline, Table};

use super::snapshot::{KINDS, Snapshot};
use super::view::{Drained, View, WatchedAgent};
use crate::http::requests::RouteBody;

/// Lines of an agent's frame.
const FRAME: u16 = 2;
/// Lines of an agent's facts.
const WORDS: u16 = 6;
/// Lines of the record types and their heading.
const TYPES: u16 = 1 + KINDS.len() as u16;
/// Minimum lines of a chart; charts share any further lines.
const CHART: u16 = 2;
/// Width of the record types; routes go beside or below them.
const TYPES_WIDTH: u16 = 40;
const ROUTES_WIDTH: u16 = 10 + 5 * 8;
/// Width from which the list of agents shows all columns.
const LIST_WIDTH: u16 = 100;
/// Width of the labels.
const LABEL: usize = 8;

const GOOD: Style = Style::new().fg(Color::Green);
const DOUBTFUL: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().fg(Color::DarkGray);

/// Draws the terminal.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let several = view.agents.len() > 1;
    // The list gets at most half of the lines: the selected agent must stay visible.
    let rows = if several { view.agents.len() as u16 + 1 } else { 0 };
    let rows = rows.min(frame.area().height / 2);
    let areas = [Constraint::Length(rows), Constraint::Min(0), Constraint::Length(1)];
    let [list, whole, foot] = Layout::vertical(areas).areas(frame.area());
    if several {
        table(frame, list, view);
    }
    if let Some(agent) = view.agents.get(view.selected) {
        one(frame, whole, agent);
    }
    let keys = if several { "q quit   tab, arrows select agent   ? help" } else { "q quit   ? help" };
    frame.render_widget(Line::styled(format!(" {keys}"), FAINT), foot);
    if view.help {
        help(frame);
    }
}

/// Lines that [`all`] needs.
pub(super) fn height_of_all(view: &View) -> u16 {
    view.agents.iter().map(height_of).fold(0, u16::saturating_add)
}

fn height_of(agent: &WatchedAgent) -> u16 {
    let routes = agent.routes().len() as u16 + 1;
    FRAME + WORDS + routes.max(TYPES) + 2 * CHART
}

/// Draws every agent in full, one below another.
pub(super) fn all(frame: &mut Frame<'_>, view: &View) {
    let areas = Layout::vertical(view.agents.iter().map(|agent| Constraint::Length(height_of(agent))))
        .split(frame.area());
    for (agent, area) in view.agents.iter().zip(areas.iter()) {
        one(frame, *area, agent);
    }
}

fn table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let visible = usize::from(area.height.saturating_sub(1)).max(1);
    let first = view.selected.saturating_sub(visible - 1);
    let is_narrow = area.width < LIST_WIDTH;
    let is_shown = |column: usize| !is_narrow || matches!(column, 0..=3 | 9);
    let rows = view.agents.iter().enumerate().skip(first).map(|(n, agent)| {
        let mark = if n == view.selected { ">" } else { " " };
        let name = format!("{mark} {}", agent.name());
        let (status, style) = status(agent);
        let row = match (&agent.snapshot, &agent.trouble) {
            (Some(snapshot), None) => vec![
                name,
                status,
                count(snapshot.total_depth()),
                age(snapshot),
                rate(agent.rates().map(|(come, _)| come)),
                rate(agent.rates().map(|(_, gone)| gone)),
                snapshot.link.clone(),
                format!("{:.0} %", snapshot.fullness() * 100.0),
                count(snapshot.dead_letters),
                drained(agent),
            ],
            _ => vec![name, status],
        };
        let row = Row::new(row.into_iter().enumerate().filter(|(n, _)| is_shown(*n)).map(|(_, cell)| cell));
        let row = row.style(style);
        if n == view.selected { row.bold() } else { row }
    });
    let more = view.agents.len().saturating_sub(visible);
    let name = if more > 0 { format!("  agent (+{more})") } else { "  agent".to_owned() };
    let head = [&*name, "status", "waiting", "oldest", "in/s", "out/s", "link", "disk", "dead", "drained"];
    let widths = [
        Constraint::Min(if is_narrow { 14 } else { 20 }),
        Constraint::Length(10),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Fill(1),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    let head = head.into_iter().enumerate().filter(|(n, _)| is_shown(*n)).map(|(_, name)| name);
    let widths = widths.into_iter().enumerate().filter(|(n, _)| is_shown(*n)).map(|(_, width)| width);
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(FAINT)), area);
}

fn status(agent: &WatchedAgent) -> (String, Style) {
    match (&agent.snapshot, &agent.trouble) {
        (_, Some(_)) => ("OFFLINE".into(), BAD),
        (None, None) => ("connecting".into(), FAINT),
        (Some(snapshot), None) => (snapshot.status.clone(), style_of(&snapshot.status)),
    }
}

fn style_of(status: &str) -> Style {
    match status {
        "healthy" => GOOD,
        "degraded" => DOUBTFUL,
        _ => BAD,
    }
}

/// Draws one agent in full.
fn one(frame: &mut Frame<'_>, area: Rect, agent: &WatchedAgent) {
    let (status, style) = status(agent);
    let mut title = vec![
        Span::raw(format!(" {} ", agent.name())).style(Modifier::BOLD),
        Span::styled(format!("{status} "), style),
    ];
    if let Some(snapshot) = &agent.snapshot {
        title.push(Span::raw(format!("{}, up {} ", snapshot.version, time(snapshot.uptime))));
    }
    title.push(Span::styled(format!("{} ", agent.address), FAINT));
    let block = Block::bordered().title(Line::from(title));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let Some(snapshot) = &agent.snapshot else {
        let why = agent.trouble.as_deref().unwrap_or("connecting");
        frame.render_widget(Paragraph::new(Line::from(away(agent, why))), inside);
        return;
    };
    // With less than a line per chart, tables become lines.
    if inside.height < WORDS + TYPES + 2 {
        in_lines(frame, inside, agent, snapshot);
    } else {
        in_tables(frame, inside, agent, snapshot);
    }
}

/// Draws facts, tables and charts. Tables get the lines they need, charts the rest.
fn in_tables(frame: &mut Frame<'_>, inside: Rect, agent: &WatchedAgent, snapshot: &Snapshot) {
    let routes = agent.routes();
    let is_beside = inside.width >= TYPES_WIDTH + ROUTES_WIDTH;
    let free = inside.height - WORDS - TYPES;
    let charts = free.min(2 * CHART);
    let wanted = if routes.is_empty() { 0 } else { routes.len() as u16 + 1 };
    let more = if is_beside { wanted.saturating_sub(TYPES) } else { wanted }.min(free - charts);
    // A heading without rows says less than one line for all routes.
    let is_line = !is_beside && wanted > 0 && more < 2;
    let more = if is_line { 1 } else { more };
    let chart = (free - more).div_ceil(2);
    let heights = [WORDS, TYPES, more, chart, free - more - chart].map(Constraint::Length);
    let [words, types, below, come, gone] = Layout::vertical(heights).areas(inside);
    self::words(frame, words, agent, snapshot);
    kinds(frame, Rect { width: types.width.min(TYPES_WIDTH), ..types }, snapshot);
    if is_beside {
        let width = inside.width - TYPES_WIDTH;
        let beside = Rect { x: types.x + TYPES_WIDTH, width, height: types.height + below.height, ..types };
        self::routes(frame, beside, &routes);
    } else if is_line {
        frame.render_widget(fit(routes_in_a_line(&routes), below.width), below);
    } else {
        self::routes(frame, below, &routes);
    }
    let rates = agent.rates();
    self::chart(frame, come, "in/s", rates.map(|(come, _)| come), agent, &agent.come);
    self::chart(frame, gone, "out/s", rates.map(|(_, gone)| gone), agent, &agent.gone);
    if agent.trouble.is_some() {
        for old in [types, below, come, gone] {
            frame.buffer_mut().set_style(old, FAINT);
        }
    }
}

/// Draws everything as lines, for a small terminal; counts the lines that do not fit.
fn in_lines(frame: &mut Frame<'_>, area: Rect, agent: &WatchedAgent, snapshot: &Snapshot) {
    let mut lines: Vec<Line<'_>> = facts(agent, snapshot).into();
    let depths = KINDS.iter().zip(snapshot.depth).zip(snapshot.age);
    let depths = depths.map(|((kind, depth), age)| match depth {
        ..=0.0 => format!("{kind} 0"),
        _ => format!("{kind} {} ({})", count(depth), time(age)),
    });
    let (come, gone) = agent.rates().unzip();
    let rates = format!("{} in, {} out per second", rate(come), rate(gone));
    lines.push(labelled("waiting", vec![Span::raw(depths.collect::<Vec<_>>().join(", "))]));
    lines.push(labelled("rates", vec![Span::raw(rates)]));
    lines.push(routes_in_a_line(&agent.routes()));
    // While the agent is offline, the reason is the last of its facts.
    if agent.trouble.is_some() {
        for (n, line) in lines.iter_mut().enumerate() {
            if n + 1 != usize::from(WORDS) {
                *line = std::mem::take(line).patch_style(FAINT);
            }
        }
    }
    let room = usize::from(area.height);
    if lines.len() > room {
        let left = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(Line::styled(format!("{left} more lines do not fit: enlarge the terminal"), DOUBTFUL));
    }
    let lines: Vec<_> = lines.into_iter().map(|line| fit(line, area.width)).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// Truncates a line visibly.
fn fit(line: Line<'_>, width: u16) -> Line<'_> {
    let width = usize::from(width);
    if line.width() <= width {
        return line;
    }
    let (style, mut left) = (line.style, width.saturating_sub(1));
    let mut spans = Vec::new();
    for span in line.spans {
        let whole = span.width();
        if whole <= left {
            left -= whole;
            spans.push(span);
            continue;
        }
        let mut text = String::new();
        for c in span.content.chars() {
            let wide = Span::raw(c.to_string()).width();
            if wide > left {
                break;
            }
            left -= wide;
            text.push(c);
        }
        spans.push(Span::styled(text + "…", span.style));
        break;
    }
    Line::from(spans).style(style)
}

fn away(agent: &WatchedAgent, why: &str) -> Span<'static> {
    let since =
        agent.away_for().map(|gone| format!(", for {}", time(gone.as_secs_f64()))).unwrap_or_default();
    let style = if agent.trouble.is_some() { BAD } else { FAINT };
    Span::styled(format!("{why}{since}"), style)
}

fn labelled(label: &str, mut rest: Vec<Span<'static>>) -> Line<'static> {
    rest.insert(0, Span::styled(format!("{label:<LABEL$}"), FAINT));
    Line::from(rest)
}

/// An agent's facts, one per line.
fn facts(agent: &WatchedAgent, snapshot: &Snapshot) -> [Line<'static>; WORDS as usize] {
    let mut link = vec![Span::styled(snapshot.link.clone(), if snapshot.link_down { BAD } else { GOOD })];
    if let Some(probe) = snapshot.next_probe {
        link.push(Span::raw(format!(", next probe in {}", time(probe))));
    }
    if let Some(cause) = snapshot.link_cause.as_ref().filter(|_| snapshot.link_down) {
        link.push(Span::raw(format!(" ({cause})")));
    }
    let mut sender = match &snapshot.drain_holds {
        Some(why) => vec![Span::styled(format!("not sending: {why}"), DOUBTFUL)],
        None if !snapshot.may_pass() => vec![Span::styled("waiting for the link", DOUBTFUL)],
        None => vec![Span::raw(limits(snapshot.rate_limit, snapshot.bandwidth))],
    };
    sender.push(Span::raw(match agent.drained() {
        Drained::Now => "; no backlog".to_owned(),
        Drained::In(seconds) => format!("; drained in {}", time(seconds)),
        Drained::Growing => "; backlog growing".to_owned(),
        Drained::Never if snapshot.sends() => "; nothing delivered".to_owned(),
        Drained::NoForecast(why) if snapshot.sends() => format!("; {why}"),
        // The reason stands before it.
        Drained::Never | Drained::NoForecast(_) | Drained::Unknown => String::new(),
    }));
    let redis = Span::styled(snapshot.redis.clone(), if snapshot.redis_ok { GOOD } else { BAD });
    let in_redis = rate(snapshot.in_redis);
    let redis = vec![redis, Span::raw(format!(", {in_redis} waiting there"))];
    let disk = Span::styled(room(snapshot), style_of_disk(snapshot));
    let mut dead = vec![Span::raw(format!("{} kept", count(snapshot.dead_letters)))];
    let reasons = snapshot.dead_by_reason.iter().map(|(reason, n)| format!("{reason} {}", count(*n)));
    let reasons = reasons.collect::<Vec<_>>().join(", ");
    if !reasons.is_empty() {
        dead.push(Span::styled(format!("; since the outbox was created: {reasons}"), DOUBTFUL));
    }
    let last = match (&agent.trouble, &snapshot.refusing) {
        (Some(why), _) => labelled("OFFLINE", vec![Span::raw("last known; now: "), away(agent, why)]),
        (None, Some(why)) => {
            labelled("outbox", vec![Span::styled(format!("not accepting records: {why}"), BAD)])
        }
        (None, None) if snapshot.quarantined > 0.0 => {
            let set_aside = format!("{} records in quarantine, damaged", count(snapshot.quarantined));
            labelled("outbox", vec![Span::styled(set_aside, BAD)])
        }
        (None, None) => labelled("outbox", vec![Span::raw("accepting records")]),
    };
    [
        labelled("link", link),
        labelled("sender", sender),
        labelled("redis", redis),
        labelled("disk", vec![disk]),
        labelled("dead", dead),
        last,
    ]
}

fn room(snapshot: &Snapshot) -> String {
    let part = snapshot.fullness() * 100.0;
    format!("{} of {}, {part:.0} %", bytes(snapshot.disk), bytes(snapshot.capacity))
}

fn style_of_disk(snapshot: &Snapshot) -> Style {
    match snapshot.fullness() {
        ..0.7 => GOOD,
        ..0.9 => DOUBTFUL,
        _ => BAD,
    }
}

fn words(frame: &mut Frame<'_>, area: Rect, agent: &WatchedAgent, snapshot: &Snapshot) {
    let lines = facts(agent, snapshot).map(|line| fit(line, area.width));
    let [_, _, _, disk, _, last] = Layout::vertical([Constraint::Length(1); WORDS as usize]).areas(area);
    frame.render_widget(Paragraph::new(lines.to_vec()), area);
    let label = format!("{:<LABEL$}{}", "disk", room(snapshot));
    let gauge = LineGauge::default().ratio(snapshot.fullness()).label(label);
    frame.render_widget(gauge.filled_style(style_of_disk(snapshot)).unfilled_style(FAINT), disk);
    if agent.trouble.is_some() {
        frame.buffer_mut().set_style(Rect { height: area.height - last.height, ..area }, FAINT);
    }
}

fn kinds(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let rows = KINDS.iter().enumerate().map(|(n, kind)| {
        let oldest = if snapshot.depth[n] > 0.0 { time(snapshot.age[n]) } else { "-".into() };
        Row::new([(*kind).to_owned(), count(snapshot.depth[n]), oldest])
    });
    let widths = [Constraint::Length(12), Constraint::Length(14), Constraint::Length(12)];
    let table = Table::new(rows, widths).header(Row::new(["record type", "waiting", "oldest"]).style(FAINT));
    frame.render_widget(table, area);
}

/// Draws the busiest routes that fit, and counts the others.
fn routes(frame: &mut Frame<'_>, area: Rect, routes: &[RouteBody]) {
    let room = usize::from(area.height.saturating_sub(1));
    let more = routes.len().saturating_sub(room);
    let rows = routes.iter().take(room).map(|route| {
        Row::new([
            route.endpoint.clone(),
            count(route.per_second),
            count(route.errors_per_second),
            count(route.too_many_per_second),
            milliseconds(route.p50_seconds),
            milliseconds(route.p99_seconds),
        ])
    });
    let name = if more > 0 { format!("route (+{more})") } else { "route".to_owned() };
    let head = [name, "req/s".into(), "errors".into(), "429".into(), "p50".into(), "p99".into()];
    let widths = [Constraint::Min(10)].into_iter().chain([Constraint::Length(8); 5]);
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(FAINT)), area);
}

/// The busiest routes in one line, each with all columns of the table; truncated to the width.
fn routes_in_a_line(routes: &[RouteBody]) -> Line<'static> {
    let told = routes.iter().map(|route| {
        let mut text = format!("{} {}/s", route.endpoint, count(route.per_second));
        for (of, name) in [(route.errors_per_second, "errors"), (route.too_many_per_second, "429")] {
            if of > 0.0 {
                text.extend([", ", &count(of), " ", name]);
            }
        }
        text + &format!(", p99 {}", milliseconds(route.p99_seconds))
    });
    let told = told.collect::<Vec<_>>().join("; ");
    let told =
        if told.is_empty() { "no recent requests".to_owned() } else { format!("{}: {told}", routes.len()) };
    labelled("routes", vec![Span::raw(told)])
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "–".into(), |seconds| format!("{:.0} ms", seconds * 1000.0))
}

/// Draws rates as bars, with the time they span and their maximum.
fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    label: &str,
    now: Option<f64>,
    agent: &WatchedAgent,
    rates: &VecDeque<f64>,
) {
    let [text, bars] = Layout::horizontal([Constraint::Length(18), Constraint::Min(0)]).areas(area);
    // The newest on the right, as many as fit.
    let shown = rates.len().min(usize::from(bars.width));
    let newest: Vec<u64> = rates.iter().skip(rates.len() - shown).map(|rate| rate.round() as u64).collect();
    let most = newest.iter().max().copied().unwrap_or_default() as f64;
    let lines = vec![
        Line::raw(format!("{label:<LABEL$}{}", rate(now))),
        Line::styled(span(agent.span_of(shown)), FAINT),
        Line::styled(format!("at most {}", count(most)), FAINT),
    ];
    frame.render_widget(Paragraph::new(lines), text);
    let free = bars.width.saturating_sub(newest.len() as u16);
    let bars = Rect { x: bars.x + free, width: bars.width - free, ..bars };
    frame.render_widget(Sparkline::default().data(newest), bars);
}

/// The time that rates span. A single rate is the agent's own mean.
fn span(shown: std::time::Duration) -> String {
    if shown.is_zero() { "mean of 5 s".to_owned() } else { format!("last {}", time(shown.as_secs_f64())) }
}

fn help(frame: &mut Frame<'_>) {
    let text = [
        "q, Esc, Ctrl-C       quit",
        "Tab, arrows, j, k    select another agent",
        "?                    show or hide this help",
        "",
        "waiting   records in the outbox, and the age of the oldest",
        "in, out   records per second: taken from Redis; delivered",
        "link      circuit breaker: up, probing, or down until the next probe",
        "sender    whether records are sent, and when the backlog will be gone",
        "dead      dead letters; list them with `dataplane-agent dead-letters list`",
        "route     requests to the ControlPlane of the last half minute: rates, times",
    ];
    let (width, height) = (76, text.len() as u16 + 2);
    let [area] = Layout::horizontal([Constraint::Length(width)])
        .flex(ratatui::layout::Flex::Center)
        .areas(frame.area());
    let [area] =
        Layout::vertical([Constraint::Length(height)]).flex(ratatui::layout::Flex::Center).areas(area);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text.join("\n")).block(Block::bordered().title(" help ")), area);
}

fn age(snapshot: &Snapshot) -> String {
    if snapshot.total_depth() > 0.0 { time(snapshot.oldest()) } else { "-".into() }
}

fn drained(agent: &WatchedAgent) -> String {
    match agent.drained() {
        Drained::Now => "now".into(),
        Drained::In(seconds) => time(seconds),
        Drained::Growing => "growing".into(),
        Drained::Never => "never".into(),
        Drained::NoForecast(_) | Drained::Unknown => "–".into(),
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "–".into(), count)
}

/// A whole number with thousands separators.
fn count(value: f64) -> String {
    // An empty sum is -0.
    let digits = format!("{:.0}", value.max(0.0) + 0.0);
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in its two largest units.
fn time(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{} min", whole / 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
        _ => format!("{} d {} h", whole / 86_400, whole / 3_600 % 24),
    }
}

fn bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes.max(0.0) + 0.0, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// The drain's rate limits.
fn limits(requests: f64, bandwidth: f64) -> String {
    let limits = [
        (requests > 0.0).then(|| format!("{} requests/s", count(requests))),
        (bandwidth > 0.0).then(|| format!("{}/s", bytes(bandwidth))),
    ];
    match limits.into_iter().flatten().collect::<Vec<_>>() {
        limits if limits.is_empty() => "sending, no limit".to_owned(),
        limits => format!("sending, at most {}", limits.join(" and ")),
    }
}
