use std::time::Duration;

use super::*;
use crate::cli::top::snapshot::{Snapshot, Told};
use crate::cli::top::view::Drained;

fn snapshot(depth: f64, enqueued: f64, settled: f64) -> Snapshot {
    Snapshot {
        server_id: "edge-1".into(),
        version: "1.0.0".into(),
        status: "healthy".into(),
        uptime: 3_700.0,
        depth: [depth, 0.0, 0.0],
        age: [75.0, 0.0, 0.0],
        enqueued,
        settled,
        link: "up".into(),
        disk: 3.5 * 1024.0 * 1024.0,
        capacity: 10.0 * 1024.0 * 1024.0,
        redis: "connected".into(),
        redis_ok: true,
        ..Snapshot::default()
    }
}

fn view(addresses: &[&str]) -> View {
    View::new(addresses.iter().map(ToString::to_string))
}

fn drawn(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, view)).unwrap();
    let cells = &terminal.backend().buffer().content;
    let lines = cells.chunks(usize::from(width));
    lines.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?}:\n{text}");
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn one_agent_is_shown_in_full() {
    let mut view = view(&["http://a:8010"]);
    assert_has(&drawn(&view, 100, 20), &["http://a:8010", "connecting"]);
    view.seen(0, (at(0), Ok(snapshot(12_345.0, 20_000.0, 7_655.0))));
    let ill = Snapshot {
        status: "degraded".into(),
        link: "down: unreachable".into(),
        link_cause: Some("no connection: refused".into()),
        link_down: true,
        next_probe: Some(17.0),
        dead_letters: 7.0,
        dead_by_reason: vec![("refused".into(), 5.0), ("invalid".into(), 2.0)],
        drain_holds: Some("paused by an operator".into()),
        in_redis: Some(42.0),
        ..snapshot(12_445.0, 20_200.0, 7_755.0)
    };
    view.seen(0, (at(2), Ok(ill)));
    assert_has(
        &drawn(&view, 100, 20),
        &[
            "edge-1 degraded 1.0.0, up 1 h 1 min",
            "down: unreachable, next probe in 17 s (no connection: refused)",
            "not sending: paused by an operator",
            "connected, 42 waiting there",
            "3.5 MiB of 10.0 MiB, 35 %",
            "7 kept; since the outbox was created: refused 5, invalid 2",
            "usage        12,445         1 min",
            "lifecycle    0              -",
            "in/s    100",
            "out/s   50",
            "accepting records",
            "q quit",
        ],
    );
}

#[test]
fn several_are_listed_and_the_selected_one_is_shown_in_full() {
    let mut view = view(&["http://a:1", "http://b:2", "http://c:3"]);
    for (n, id) in ["edge-a", "edge-b", "edge-c"].into_iter().enumerate() {
        view.seen(n, (at(0), Ok(Snapshot { server_id: id.into(), ..snapshot(n as f64, 10.0, 10.0) })));
    }
    let text = drawn(&view, 110, 24);
    assert_has(&text, &["> edge-a", "  edge-b", "  edge-c", "edge-a healthy", "tab, arrows"]);
    view.select(-1);
    assert_has(&drawn(&view, 110, 24), &["> edge-c", "edge-c healthy"]);
    view.select(1);
    view.select(1);
    assert_has(&drawn(&view, 110, 24), &["> edge-b", "edge-b healthy"]);
    // Sixty agents on a small terminal: the selected one is visible.
    let many: Vec<String> = (0..60).map(|n| format!("http://agent-{n}:1")).collect();
    let mut view = View::new(many.into_iter());
    view.select(-1);
    assert_has(&drawn(&view, 80, 20), &["> http://agent-59:1"]);
}

#[test]
fn an_unreachable_agent_is_shown_as_down_and_recovers() {
    let mut view = view(&["http://a:1"]);
    view.seen(0, (at(0), Err("no answer".into())));
    view.seen(0, (at(65), Err("no answer".into())));
    assert_has(&drawn(&view, 90, 20), &["OFFLINE", "no answer, for 1 min"]);
    view.seen(0, (at(70), Ok(snapshot(5.0, 10.0, 5.0))));
    let back = drawn(&view, 90, 20);
    assert!(back.contains("healthy") && !back.contains("OFFLINE"), "{back}");
    view.seen(0, (at(71), Err("no answer".into())));
    let text = drawn(&view, 90, 20);
    assert_has(&text, &["edge-1 OFFLINE", "last known; now: no answer", "usage        5", "in/s    –"]);
    // Old data is dimmed; the current problem is not.
    let mut terminal = Terminal::new(TestBackend::new(90, 20)).unwrap();
    terminal.draw(|frame| draw::draw(frame, &view)).unwrap();
    let buffer = terminal.backend().buffer();
    let style_of = |words: &str| {
        let row =
            (0..20).find(|y| (0..90).map(|x| buffer[(x, *y)].symbol()).collect::<String>().contains(words));
        buffer[(30, row.unwrap())].fg
    };
    assert_eq!(style_of("redis"), ratatui::style::Color::DarkGray);
    assert_eq!(style_of("last known"), ratatui::style::Color::Red);
}

#[test]
fn the_busiest_routes_are_shown_and_the_others_counted() {
    let metrics = |requests: u64| {
        let mut text = "redis_connection_status{server_id=\"edge-1\"} 1\n".to_owned();
        for (n, route) in ["batch", "refresh", "heartbeat", "commands"].into_iter().enumerate() {
            let (good, late) = (requests * (9 - n as u64), requests);
            text.extend([format!(
                "dataplane_control_plane_requests_total{{endpoint=\"{route}\",code=\"200\"}} {good}\n\
                 dataplane_control_plane_requests_total{{endpoint=\"{route}\",code=\"429\"}} {late}\n\
                 dataplane_control_plane_request_seconds_bucket{{endpoint=\"{route}\",le=\"0.1\"}} {}\n\
                 dataplane_control_plane_request_seconds_bucket{{endpoint=\"{route}\",le=\"+Inf\"}} {}\n",
                good + late,
                good + late
            )]);
        }
        text
    };
    let health = r#"{"version":"1","status":"healthy"}"#;
    let mut view = view(&["http://a:1"]);
    view.seen(0, (at(0), Ok(Snapshot::of(health, &metrics(0)).unwrap())));
    view.seen(0, (at(1), Ok(Snapshot::of(health, &metrics(10)).unwrap())));
    let text = drawn(&view, 110, 17);
    assert_has(&text, &["route (+1)", "batch", "100      0        10       50 ms    99 ms", "heartbeat"]);
    assert!(!text.contains("commands"), "{text}");
    let routes = ["batch", "refresh", "heartbeat", "commands"];
    let higher = drawn(&view, 110, 20);
    assert_has(&higher, &routes);
    assert!(!higher.contains("(+"), "{higher}");
    // On a narrow terminal routes go below the record types; if there is no room either, into a line.
    assert_has(&drawn(&view, 60, 24), &["route  ", "commands", "quota        0"]);
    assert_has(&drawn(&view, 60, 17), &["routes  4: batch 100/s, 10 429, p99 99 ms; refresh ", "…"]);
    assert_has(&drawn(&view, 60, 12), &["routes  4: batch 100/s, 10 429, p99 99 ms; refresh ", "…"]);
}

#[test]
fn a_small_terminal_has_every_line_and_a_smaller_one_counts_the_missing() {
    let mut view = view(&["http://a:1"]);
    let ill = |enqueued| Snapshot {
        depth: [12_345.0, 0.0, 2.0],
        age: [75.0, 0.0, 3.0],
        status: "degraded".into(),
        link: "down: overloaded".into(),
        link_cause: Some("status 503: the service is busy, come again later".into()),
        link_down: true,
        next_probe: Some(14.0),
        dead_letters: 7.0,
        in_redis: Some(42.0),
        quarantined: 9.0,
        ..snapshot(0.0, enqueued, 0.0)
    };
    view.seen(0, (at(0), Ok(ill(0.0))));
    view.seen(0, (at(1), Ok(ill(30.0))));
    let text = drawn(&view, 60, 12);
    assert_has(
        &text,
        &[
            "edge-1 degraded",
            "link    down: overloaded, next probe in 14 s",
            "…",
            "sender  waiting for the link",
            "redis   connected, 42 waiting there",
            "disk    3.5 MiB of 10.0 MiB, 35 %",
            "dead    7 kept",
            "outbox  9 records in quarantine",
            "waiting usage 12,345 (1 min), lifecycle 0, quota 2 (3 s)",
            "rates   30 in, 0 out per second",
            "routes  no recent requests",
            "? help",
        ],
    );
    let text = drawn(&view, 60, 8);
    assert_has(&text, &["link    down", "redis   connected", "…"].map(|part| part.trim_end_matches('…')));
    assert_has(&text, &["5 more lines do not fit: enlarge the terminal"]);
    // The last known state is dimmed, and the current problem is shown.
    view.seen(0, (at(2), Err("no answer".into())));
    assert_has(&drawn(&view, 60, 12), &["OFFLINE last known; now: no answer", "rates   – in, – out"]);
}

#[test]
fn charts_fill_the_height_and_show_their_span() {
    let mut view = view(&["http://a:1"]);
    for second in 0..=90 {
        let enqueued = if second > 80 { 5_000.0 } else { second as f64 * 10.0 };
        view.seen(0, (at(second), Ok(snapshot(5.0, enqueued, 0.0))));
    }
    let bars = |text: &str| {
        let is_bar = |line: &&str| line.contains(['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']);
        text.lines().filter(is_bar).count()
    };
    let (low, high) = (drawn(&view, 140, 20), drawn(&view, 140, 50));
    assert!(bars(&high) >= 15 && bars(&low) < 8, "{low}{high}");
    assert_has(&high, &["last 1 min", "at most 4,200", "at most 0"]);
    // As many bars as fit.
    assert_has(&drawn(&view, 60, 30), &["last 40 s"]);
}

#[test]
fn the_list_says_how_many_agents_it_does_not_show() {
    let many: Vec<String> = (0..20).map(|n| format!("a-{n}:1")).collect();
    let mut view = View::new(many.into_iter());
    view.seen(0, (at(0), Ok(snapshot(5.0, 10.0, 5.0))));
    assert_has(&drawn(&view, 60, 12), &["agent (+15)", "> edge-1", "healthy", "1 min"]);
    assert_has(&drawn(&view, 120, 60), &["  agent  ", "a-19:1", "disk", "drained"]);
}

#[test]
fn there_is_no_forecast_while_nothing_can_be_delivered_and_it_begins_anew_afterwards() {
    let mut view = view(&["http://a:1"]);
    let shrinking = |second: u64| snapshot(100.0 - second as f64, 100.0, second as f64);
    let mut seen = |seconds: std::ops::Range<u64>, state: &dyn Fn(u64) -> Snapshot| {
        for second in seconds {
            view.seen(0, (at(second), Ok(state(second))));
        }
        view.agents[0].drained()
    };
    assert_eq!(seen(0..5, &shrinking), Drained::Unknown);
    assert_eq!(seen(5..6, &shrinking), Drained::In(95.0), "one a second");
    assert_eq!(seen(6..7, &|_| Snapshot { link_down: true, ..shrinking(6) }), Drained::Never);
    let held = |second| Snapshot { link_down: true, holds_kinds: true, ..shrinking(second) };
    assert_eq!(seen(7..12, &held), Drained::Unknown);
    assert_eq!(seen(12..13, &held), Drained::In(88.0), "the other kinds pass");
    // A pause in which nothing goes.
    let paused = |_| Snapshot { drain_holds: Some("paused".into()), ..shrinking(12) };
    assert_eq!(seen(13..43, &paused), Drained::Never);
    let after = |second: u64| shrinking(12 + second - 43);
    assert_eq!(seen(43..48, &after), Drained::Unknown);
    assert_eq!(seen(48..49, &after), Drained::In(83.0), "one a second, as if there had been no pause");
}

#[test]
fn what_the_agent_has_measured_goes_before_what_is_measured_here() {
    let status = r#"{
        "kinds": {"usage": {"in_per_second": 40.0, "out_per_second": 70.8}, "quota": {"in_per_second": 2.0, "out_per_second": 0}},
        "routes": [{"endpoint": "batch", "per_second": 3.5, "errors_per_second": 3.5, "too_many_per_second": 0,
                    "p50_seconds": 0.02, "p99_seconds": null}],
        "drained_in_seconds": 125.0, "no_forecast": null
    }"#;
    let told = Told::of(status);
    assert!(told.is_some(), "it is understood");
    let mut view = view(&["http://a:1"]);
    // One look suffices.
    view.seen(0, (at(0), Ok(Snapshot { told, ..snapshot(5_000.0, 10.0, 5.0) })));
    assert_has(
        &drawn(&view, 100, 20),
        &[
            "in/s    42",
            "out/s   71",
            "mean of 5 s",
            "batch ",
            "20 ms",
            "sending, no limit; drained in 2 min",
        ],
    );
    let why = Told { rates: Some((0.0, 0.0)), no_forecast: Some("keeping up".into()), ..Told::default() };
    view.seen(0, (at(1), Ok(Snapshot { told: Some(why), ..snapshot(5_000.0, 20.0, 5.0) })));
    assert_has(&drawn(&view, 100, 20), &["sending, no limit; keeping up", "in/s    0"]);
    // Rates are unknown in the first second of an agent.
    let told = Told::of(&status.replace("40.0", "null"));
    assert_eq!(told.as_ref().map(|told| told.rates), Some(None));
    let mut view = self::view(&["http://b:1"]);
    view.seen(0, (at(0), Ok(Snapshot { told, ..snapshot(5_000.0, 10.0, 5.0) })));
    assert_has(&drawn(&view, 100, 20), &["in/s    –", "batch "]);
    assert_eq!(Told::of("{}"), None);
}

#[test]
fn the_estimate_follows_the_rates() {
    let mut view = view(&["http://a:1"]);
    let drained = |view: &View| view.agents[0].drained();
    assert_eq!(drained(&view), Drained::Unknown);
    view.seen(0, (at(0), Ok(snapshot(0.0, 0.0, 0.0))));
    assert_eq!(drained(&view), Drained::Now);
    for second in 1..=5 {
        view.seen(0, (at(second), Ok(snapshot(100.0, 100.0, 0.0))));
    }
    assert_eq!(drained(&view), Drained::Growing);
    for second in 6..18 {
        let gone = (second - 5) as f64 * 5.0;
        view.seen(0, (at(second), Ok(snapshot(100.0 - gone, 100.0, gone))));
    }
    assert_eq!(drained(&view), Drained::In(8.0), "40 are left, 5 a second");
    for second in 18..33 {
        view.seen(0, (at(second), Ok(snapshot(40.0, 100.0, 60.0))));
    }
    assert_eq!(drained(&view), Drained::Never);
    // Another outbox behind the same address: no negative rate.
    view.seen(0, (at(33), Ok(snapshot(1.0, 1.0, 0.0))));
    assert_eq!(view.agents[0].rates(), Some((0.0, 0.0)));
}

#[test]
fn any_size_can_be_drawn() {
    let mut view = view(&["http://a:1", "http://b:2"]);
    view.seen(0, (at(0), Ok(snapshot(5.0, 10.0, 5.0))));
    view.seen(0, (at(1), Ok(snapshot(5.0, 1e12, 5.0))));
    view.seen(1, (at(0), Err("away".into())));
    for help in [false, true] {
        view.help = help;
        for (width, height) in [(1, 1), (5, 3), (20, 8), (79, 23), (300, 100)] {
            drawn(&view, width, height);
        }
    }
    assert_has(&drawn(&view, 90, 30), &["help", "select another agent"]);
}

#[test]
fn keys_do_what_they_say() {
    let mut view = view(&["http://a:1", "http://b:2"]);
    let mut press = |code, modifiers| obey(&mut view, KeyEvent::new(code, modifiers));
    let none = KeyModifiers::NONE;
    assert!(press(KeyCode::Char('?'), none));
    assert!(press(KeyCode::Esc, none), "it closes the help first");
    assert!(!press(KeyCode::Esc, none));
    assert!(!press(KeyCode::Char('q'), none));
    assert!(!press(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(press(KeyCode::Char('c'), none));
    assert!(press(KeyCode::Tab, none));
    assert_eq!((view.selected, view.help), (1, false));
}
