//! `dataplane-agent top`: one or more agents in the terminal, read-only.
//!
//! Rates, routes and the forecast are the agent's own, as on its status page. An agent tells them only to host names that it
//! trusts; otherwise they are measured from here. [`watch`] polls the agents, [`snapshot`] is the content of one answer,
//! [`view`] the state of all agents over time, and [`draw`] renders the view as a pure function.

mod draw;
mod samples;
mod snapshot;
mod view;
mod watch;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use super::agent::AdminClient;
use super::installed;
use super::out::print;
use super::target::local_address;
use crate::config::{Flags, HttpConfig, load};
use crate::telemetry::failpoint;
use view::View;

/// Poll interval for keys, and so the longest time that quitting takes.
const LOOK_FOR_KEYS: Duration = Duration::from_millis(100);
/// Time between updates, unless set.
const UPDATE_EVERY: Duration = Duration::from_secs(1);
/// How long a printed snapshot measures an agent that does not tell its own rates: less says little about rare requests.
const ONCE_MEASURES: Duration = Duration::from_secs(10);
/// Width of a printed snapshot.
const ONCE_WIDTH: u16 = 100;

/// Which agents to watch.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Addresses of the agents, as http://host:port or host:port; default: SERVER_HOST and SERVER_PORT
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// Seconds between updates; default: 1. With --once, seconds over which an agent is measured that does not tell its own
    /// rates; default: 10
    #[arg(long, value_parser = interval)]
    interval: Option<f64>,
    /// Prints one snapshot as text and exits, with 0 if all agents answered
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.ok_or_else(|| "from 0.1 to 60".to_owned())
}

pub(super) async fn run(args: Args, flags: Flags, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut addresses = args.addresses;
    if addresses.is_empty() {
        let (config, _) = load::<HttpConfig>(&installed::sources(flags))?;
        addresses.push(local_address(&config));
    }
    let agents = addresses.iter().map(|address| AdminClient::at(address, None));
    let agents = agents.collect::<Result<Vec<_>, _>>()?;
    let view = View::new(agents.iter().map(ToString::to_string));
    let interval = args.interval.map(Duration::from_secs_f64);
    if args.once {
        return once(&agents, view, interval.unwrap_or(ONCE_MEASURES)).await;
    }
    let interval = interval.unwrap_or(UPDATE_EVERY);
    ensure!(
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal(),
        "top needs a terminal; `top --once` prints one snapshot anywhere"
    );
    let watchers = watch::start(agents, interval);
    let result = show(view, watchers.looks, stop).await;
    drop(watchers.tasks);
    result
}

/// Prints the state as text. Agents that do not tell their own rates are measured between two samples.
async fn once(agents: &[AdminClient], mut view: View, interval: Duration) -> anyhow::Result<()> {
    let look = async |agent| watch::look(agent, &mut true).await;
    let mut looks = futures_util::future::join_all(agents.iter().map(look)).await;
    let must_measure = |look: &view::AgentSample| look.1.as_ref().is_ok_and(|seen| seen.told.is_none());
    let measured: Vec<bool> = looks.iter().map(must_measure).collect();
    for (n, look) in looks.drain(..).enumerate() {
        view.seen(n, look);
    }
    if measured.contains(&true) {
        tokio::time::sleep(interval).await;
        for (n, agent) in agents.iter().enumerate().filter(|(n, _)| measured[*n]) {
            view.seen(n, watch::look(agent, &mut false).await);
        }
    }
    print(text(&mut view)?.as_bytes())?;
    let away = view.agents.iter().filter(|agent| agent.trouble.is_some()).count();
    ensure!(away == 0, "{away} of {} agents did not answer", view.agents.len());
    Ok(())
}

/// The snapshot as lines of text, one agent after another.
fn text(view: &mut View) -> anyhow::Result<String> {
    let mut text = String::new();
    let height = draw::height_of_all(view);
    let mut terminal = Terminal::new(TestBackend::new(ONCE_WIDTH, height))?;
    terminal.draw(|frame| draw::all(frame, view))?;
    let buffer = terminal.backend().buffer();
    for line in buffer.content.chunks(usize::from(ONCE_WIDTH)) {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// The terminal while we use it. A panic restores it too, before printing its message.
struct Screen(ratatui::DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        // Restoring twice would move the cursor back above the panic's message.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

async fn show(
    mut view: View,
    mut looks: mpsc::Receiver<watch::Look>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut screen = Screen(ratatui::try_init().context("cannot use the terminal")?);
    let keys = KeyReader::start()?;
    let result = follow(&mut view, &mut screen, &mut looks, keys.pressed, stop).await;
    keys.stop.store(true, Ordering::Relaxed);
    drop(screen);
    // The thread checks the flag ten times a second; a panic in it has been reported.
    let _ = tokio::task::spawn_blocking(move || keys.thread.join()).await;
    result
}

async fn follow(
    view: &mut View,
    screen: &mut Screen,
    looks: &mut mpsc::Receiver<watch::Look>,
    mut pressed: mpsc::Receiver<std::io::Result<Event>>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut stop = std::pin::pin!(stop);
    loop {
        screen.0.draw(|frame| draw::draw(frame, view)).context("cannot use the terminal")?;
        failpoint::reached("top::drawn");
        tokio::select! {
            () = &mut stop => return Ok(()),
            look = looks.recv() => match look {
                Some((agent, look)) => view.seen(agent, look),
                None => return Ok(()),
            },
            event = pressed.recv() => match event {
                Some(Ok(Event::Key(key))) => {
                    if !obey(view, key) {
                        return Ok(());
                    }
                }
                // A resize: the loop redraws.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot use the terminal"),
                None => return Ok(()),
            },
        }
    }
}

/// Executes a key. Returns false to quit.
fn obey(view: &mut View, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') => return false,
        KeyCode::Esc if !view.help => return false,
        KeyCode::Char('?' | 'h') => view.help = !view.help,
        KeyCode::Esc => view.help = false,
        KeyCode::Down | KeyCode::Right | KeyCode::Tab | KeyCode::Char('j' | 'l') => view.select(1),
        KeyCode::Up | KeyCode::Left | KeyCode::BackTab | KeyCode::Char('k') => view.select(-1),
        _ => {}
    }
    true
}

/// The thread that waits for keys: crossterm's other ways need more of its features.
struct KeyReader {
    pressed: mpsc::Receiver<std::io::Result<Event>>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl KeyReader {
    fn start() -> anyhow::Result<Self> {
        let (press, pressed) = mpsc::channel(16);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("keys".into()).spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let event = match event::poll(LOOK_FOR_KEYS) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let failed = event.is_err();
                if press.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { pressed, stop, thread })
    }
}

#[cfg(test)]
mod tests;
