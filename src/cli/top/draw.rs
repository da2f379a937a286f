//! How the board looks: a pure function of it. Colour says nothing that words do not.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, LineGauge, Paragraph, Row, Sparkline, Table};

use super::board::{Board, Drained, Watched};
use super::picture::{KINDS, Picture};

/// One agent, whole: its frame, five lines, the kinds, the charts.
const WHOLE: u16 = 2 + 6 + 4 + 4;
/// The names of the lines.
const LABEL: usize = 8;

const GOOD: Style = Style::new().fg(Color::Green);
const DOUBTFUL: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().fg(Color::DarkGray);

/// What is on the terminal.
pub(super) fn draw(frame: &mut Frame<'_>, board: &Board) {
    let several = board.agents.len() > 1;
    // The list gets half of the room at the most: the selected one is kept in sight.
    let rows = if several { board.agents.len() as u16 + 1 } else { 0 };
    let rows = rows.min(frame.area().height / 2);
    let areas = [Constraint::Length(rows), Constraint::Min(0), Constraint::Length(1)];
    let [list, whole, foot] = Layout::vertical(areas).areas(frame.area());
    if several {
        table(frame, list, board);
    }
    if let Some(agent) = board.agents.get(board.selected) {
        one(frame, whole, agent);
    }
    let keys = if several { "q quit   tab, arrows another agent   ? help" } else { "q quit   ? help" };
    frame.render_widget(Line::styled(format!(" {keys}"), FAINT), foot);
    if board.help {
        help(frame);
    }
}

/// How many lines [`all`] takes.
pub(super) fn height_of_all(board: &Board) -> u16 {
    WHOLE.saturating_mul(board.agents.len() as u16)
}

/// Every agent, whole, one below the other.
pub(super) fn all(frame: &mut Frame<'_>, board: &Board) {
    let areas = Layout::vertical(board.agents.iter().map(|_| Constraint::Length(WHOLE))).split(frame.area());
    for (agent, area) in board.agents.iter().zip(areas.iter()) {
        one(frame, *area, agent);
    }
}

fn table(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let visible = usize::from(area.height.saturating_sub(1)).max(1);
    let first = board.selected.saturating_sub(visible - 1);
    let rows = board.agents.iter().enumerate().skip(first).map(|(n, agent)| {
        let mark = if n == board.selected { ">" } else { " " };
        let name = format!("{mark} {}", agent.name());
        let (status, style) = status(agent);
        let row = match (&agent.picture, &agent.trouble) {
            (Some(picture), None) => vec![
                name,
                status,
                count(picture.total_depth()),
                age(picture),
                rate(agent.rates().map(|(come, _)| come)),
                rate(agent.rates().map(|(_, gone)| gone)),
                picture.link.clone(),
                format!("{:.0} %", picture.fullness() * 100.0),
                count(picture.dead_letters),
                drained(agent),
            ],
            _ => vec![name, status],
        };
        let row = Row::new(row).style(style);
        if n == board.selected { row.bold() } else { row }
    });
    let head = ["  agent", "status", "waiting", "oldest", "in/s", "out/s", "link", "disk", "dead", "drained"];
    let widths = [
        Constraint::Min(20),
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
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(FAINT)), area);
}

fn status(agent: &Watched) -> (String, Style) {
    match (&agent.picture, &agent.trouble) {
        (_, Some(_)) => ("AWAY".into(), BAD),
        (None, None) => ("asking".into(), FAINT),
        (Some(picture), None) => (picture.status.clone(), style_of(&picture.status)),
    }
}

fn style_of(status: &str) -> Style {
    match status {
        "healthy" => GOOD,
        "degraded" => DOUBTFUL,
        _ => BAD,
    }
}

/// One agent, with everything.
fn one(frame: &mut Frame<'_>, area: Rect, agent: &Watched) {
    let (status, style) = status(agent);
    let mut title = vec![
        Span::raw(format!(" {} ", agent.name())).style(Modifier::BOLD),
        Span::styled(format!("{status} "), style),
    ];
    if let Some(picture) = &agent.picture {
        title.push(Span::raw(format!("{}, up {} ", picture.version, time(picture.uptime))));
    }
    title.push(Span::styled(format!("{} ", agent.address), FAINT));
    let block = Block::bordered().title(Line::from(title));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let Some(picture) = &agent.picture else {
        let why = agent.trouble.as_deref().unwrap_or("asking");
        frame.render_widget(Paragraph::new(Line::from(away(agent, why))), inside);
        return;
    };
    let areas = [6, 4, 2, 2].map(Constraint::Length);
    let [words, kinds, come, gone] = Layout::vertical(areas).areas(inside);
    self::words(frame, words, agent, picture);
    let [of_kinds, of_routes] = Layout::horizontal([Constraint::Length(40), Constraint::Min(0)]).areas(kinds);
    self::kinds(frame, of_kinds, picture);
    routes(frame, of_routes, agent);
    let rates = agent.rates();
    chart(frame, come, "in/s", rates.map(|(come, _)| come), agent.come.iter());
    chart(frame, gone, "out/s", rates.map(|(_, gone)| gone), agent.gone.iter());
    if agent.trouble.is_some() {
        for old in [kinds, come, gone] {
            frame.buffer_mut().set_style(old, FAINT);
        }
    }
}

fn away(agent: &Watched, why: &str) -> Span<'static> {
    let since =
        agent.away_for().map(|gone| format!(", for {}", time(gone.as_secs_f64()))).unwrap_or_default();
    let style = if agent.trouble.is_some() { BAD } else { FAINT };
    Span::styled(format!("{why}{since}"), style)
}

fn labelled(label: &str, mut rest: Vec<Span<'static>>) -> Line<'static> {
    rest.insert(0, Span::styled(format!("{label:<LABEL$}"), FAINT));
    Line::from(rest)
}

fn words(frame: &mut Frame<'_>, area: Rect, agent: &Watched, picture: &Picture) {
    let [text, disk, rest] =
        Layout::vertical([Constraint::Length(3), Constraint::Length(1), Constraint::Length(2)]).areas(area);
    let mut link = vec![Span::styled(picture.link.clone(), if picture.link_down { BAD } else { GOOD })];
    if let Some(probe) = picture.next_probe {
        link.push(Span::raw(format!(", next probe in {}", time(probe))));
    }
    if let Some(cause) = picture.link_cause.as_ref().filter(|_| picture.link_down) {
        link.push(Span::raw(format!(" ({cause})")));
    }
    let mut drain = match &picture.drain_holds {
        Some(why) => vec![Span::styled(format!("sends nothing: {why}"), DOUBTFUL)],
        None => vec![Span::raw(limits(picture.rate_limit, picture.bandwidth))],
    };
    drain.push(Span::raw(match agent.drained() {
        Drained::Now => "; nothing waits".to_owned(),
        Drained::In(seconds) => format!("; drained in {}", time(seconds)),
        Drained::Growing => "; what waits becomes more".to_owned(),
        Drained::Never => "; nothing is delivered".to_owned(),
        Drained::Unknown => String::new(),
    }));
    let redis = Span::styled(picture.redis.clone(), if picture.redis_ok { GOOD } else { BAD });
    let in_redis = rate(picture.redis_ok.then_some(picture.in_redis));
    let redis = vec![redis, Span::raw(format!(", {in_redis} waiting there"))];
    let lines = vec![labelled("link", link), labelled("drain", drain), labelled("redis", redis)];
    frame.render_widget(Paragraph::new(lines), text);

    let room = format!(
        "{:<LABEL$}{} of {}, {:.0} %",
        "disk",
        bytes(picture.disk),
        bytes(picture.capacity),
        picture.fullness() * 100.0
    );
    let style = match picture.fullness() {
        ..0.7 => GOOD,
        ..0.9 => DOUBTFUL,
        _ => BAD,
    };
    let gauge = LineGauge::default().ratio(picture.fullness()).label(room).filled_style(style);
    frame.render_widget(gauge.unfilled_style(FAINT), disk);

    let mut dead = vec![Span::raw(format!("{} kept", count(picture.dead_letters)))];
    let reasons = picture.dead_by_reason.iter().map(|(reason, n)| format!("{reason} {}", count(*n)));
    let reasons = reasons.collect::<Vec<_>>().join(", ");
    if !reasons.is_empty() {
        dead.push(Span::styled(format!("; since this outbox began: {reasons}"), DOUBTFUL));
    }
    let last = match (&agent.trouble, &picture.refusing) {
        (Some(why), _) => labelled("AWAY", vec![Span::raw("as it was; now "), away(agent, why)]),
        (None, Some(why)) => labelled("outbox", vec![Span::styled(format!("takes nothing: {why}"), BAD)]),
        (None, None) if picture.quarantined > 0.0 => {
            let set_aside = format!("{} records are set aside, damaged", count(picture.quarantined));
            labelled("outbox", vec![Span::styled(set_aside, BAD)])
        }
        (None, None) => labelled("outbox", vec![Span::raw("takes records")]),
    };
    frame.render_widget(Paragraph::new(vec![labelled("dead", dead), last]), rest);
    if agent.trouble.is_some() {
        for old in [text, disk, Rect { height: rest.height.min(1), ..rest }] {
            frame.buffer_mut().set_style(old, FAINT);
        }
    }
}

fn kinds(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let rows = KINDS.iter().enumerate().map(|(n, kind)| {
        let oldest = if picture.depth[n] > 0.0 { time(picture.age[n]) } else { "-".into() };
        Row::new([(*kind).to_owned(), count(picture.depth[n]), oldest])
    });
    let widths = [Constraint::Length(12), Constraint::Length(14), Constraint::Length(12)];
    let table = Table::new(rows, widths).header(Row::new(["kind", "waiting", "oldest"]).style(FAINT));
    frame.render_widget(table, area);
}

/// The busiest routes, as many as there is room for; of the others it is said how many they are.
fn routes(frame: &mut Frame<'_>, area: Rect, agent: &Watched) {
    const WIDTH: u16 = 10 + 5 * 8;
    if area.width < WIDTH {
        return;
    }
    let routes = agent.requests.routes();
    let room = usize::from(area.height.saturating_sub(1));
    let more = routes.len().saturating_sub(room);
    let seconds = |seconds: Option<f64>| {
        seconds.map_or_else(|| "–".into(), |seconds| format!("{:.0} ms", seconds * 1000.0))
    };
    let rows = routes.iter().take(room).map(|route| {
        Row::new([
            route.endpoint.clone(),
            count(route.per_second),
            count(route.errors_per_second),
            count(route.too_many_per_second),
            seconds(route.p50_seconds),
            seconds(route.p99_seconds),
        ])
    });
    let name = if more > 0 { format!("route (+{more})") } else { "route".to_owned() };
    let head = [name, "req/s".into(), "errors".into(), "429".into(), "p50".into(), "p99".into()];
    let widths = [Constraint::Min(10)].into_iter().chain([Constraint::Length(8); 5]);
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(FAINT)), area);
}

fn chart<'a>(
    frame: &mut Frame<'_>,
    area: Rect,
    label: &str,
    now: Option<f64>,
    rates: impl DoubleEndedIterator<Item = &'a f64>,
) {
    let [text, bars] = Layout::horizontal([Constraint::Length(18), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::raw(format!("{label:<LABEL$}{}", rate(now))), text);
    // The newest at the right, as many as there is room for.
    let mut newest: Vec<u64> =
        rates.rev().take(usize::from(bars.width)).map(|rate| rate.round() as u64).collect();
    newest.reverse();
    let free = bars.width.saturating_sub(newest.len() as u16);
    let bars = Rect { x: bars.x + free, width: bars.width - free, ..bars };
    frame.render_widget(Sparkline::default().data(newest), bars);
}

fn help(frame: &mut Frame<'_>) {
    let text = [
        "q, Esc, Ctrl-C       ends",
        "Tab, arrows, j, k    another agent",
        "?                    this help, and back",
        "",
        "waiting   records in the outbox, and the age of the oldest",
        "in, out   records a second: taken over from Redis, and settled",
        "link      up, probing, or down until the next probe",
        "drained   when nothing would wait any more, at this pace",
        "dead      dead letters: see `dead-letters list`",
        "route     requests to the ControlPlane, errors, 429s and times",
    ];
    let (width, height) = (66, text.len() as u16 + 2);
    let [area] = Layout::horizontal([Constraint::Length(width)])
        .flex(ratatui::layout::Flex::Center)
        .areas(frame.area());
    let [area] =
        Layout::vertical([Constraint::Length(height)]).flex(ratatui::layout::Flex::Center).areas(area);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text.join("\n")).block(Block::bordered().title(" help ")), area);
}

fn age(picture: &Picture) -> String {
    if picture.total_depth() > 0.0 { time(picture.oldest()) } else { "-".into() }
}

fn drained(agent: &Watched) -> String {
    match agent.drained() {
        Drained::Now => "now".into(),
        Drained::In(seconds) => time(seconds),
        Drained::Growing => "growing".into(),
        Drained::Never => "never".into(),
        Drained::Unknown => "–".into(),
    }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "–".into(), count)
}

/// A whole number, its thousands apart.
fn count(value: f64) -> String {
    // A sum of nothing is -0.
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

/// A time, in the two greatest units that it has.
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
    let (mut value, mut unit) = (bytes.max(0.0), 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// How fast the drain may send.
fn limits(requests: f64, bandwidth: f64) -> String {
    let limits = [
        (requests > 0.0).then(|| format!("{} requests/s", count(requests))),
        (bandwidth > 0.0).then(|| format!("{}/s", bytes(bandwidth))),
    ];
    match limits.into_iter().flatten().collect::<Vec<_>>() {
        limits if limits.is_empty() => "sends, without a limit".to_owned(),
        limits => format!("sends, at most {}", limits.join(" and ")),
    }
}
