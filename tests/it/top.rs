//! Goal: `top` shows the agents' state, including those that are offline, and restores the terminal however it ends.
//! Method: a real terminal, tmux's, with a shell in it.

use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

use super::harness::{Stage, free_port, load, until};

/// A terminal with a shell.
pub(crate) struct Tmux(TempDir);

impl Tmux {
    pub(crate) fn start() -> Self {
        let tmux = Self(tempfile::tempdir().expect("a temporary folder"));
        tmux.run(&["-f", "/dev/null", "new-session", "-d", "-x", "110", "-y", "34", "/bin/sh"]);
        tmux
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.0.path().join("socket")).args(words).env("TERM", "xterm-256color");
        let output = command.output().expect("tmux can be started: is it installed?");
        assert!(output.status.success(), "{words:?}: {output:?}");
        output
    }

    pub(crate) fn press(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.run(&["capture-pane", "-p"]).stdout).into_owned()
    }

    pub(crate) async fn shows(&self, parts: &[&str]) -> String {
        let mut last = String::new();
        let what = format!("the terminal shows {parts:?}");
        until(&what, async || {
            last = self.screen();
            parts.iter().all(|part| last.contains(part)).then(|| last.clone())
        })
        .await
    }

    /// Asserts that the shell has its terminal back: its screen, echo and line mode.
    async fn is_given_back(&self, code: &str) {
        self.shows(&[&format!("ended with {code}"), "before"]).await;
        let on =
            String::from_utf8_lossy(&self.run(&["display", "-p", "#{alternate_on}"]).stdout).into_owned();
        assert_eq!(on.trim(), "0", "the other screen is left");
        self.press(&["stty -a | grep -cE ' -icanon| -echo ' ; echo after", "Enter"]);
        let screen = self.shows(&["\nafter"]).await;
        assert!(screen.contains("\n0\nafter"), "{screen}");
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // It may have ended already.
        let socket = self.0.path().join("socket");
        let _ = Command::new("tmux").arg("-S").arg(socket).arg("kill-server").output();
    }
}

pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_dataplane-agent")
}

#[tokio::test]
async fn without_a_terminal_it_says_so_or_prints_a_snapshot() {
    let stage = Stage::set().await;
    stage.agent.command(&[], &["top"]).await.assert_failed("top needs a terminal");
    let once = stage.agent.command(&[], &["top", "--once", "--interval", "0.1"]).await;
    assert_eq!(once.code, 0, "{once:?}");
    for part in ["edge-test-1", "healthy", "up", "no backlog", "usage        0", "of 10.0 GiB"] {
        assert!(once.out.contains(part), "{part}:\n{}", once.out);
    }
    assert!(!once.out.contains('\x1b'), "plain text: {once:?}");
    let free = free_port();
    let nobody = format!("127.0.0.1:{free}");
    let two = ["top", "--once", "--interval", "0.1", &stage.agent.url(""), &nobody];
    let two = stage.agent.command(&[], &two).await;
    assert!(two.out.contains("edge-test-1") && two.out.contains("no answer"), "{two:?}");
    two.assert_failed("1 of 2 agents did not answer");
    assert_eq!(stage.agent.command(&[], &["top", "--interval", "0"]).await.code, 2);
}

#[tokio::test]
async fn agents_are_watched_go_away_and_come_back() {
    let settings = [("CONTROL_PLANE_INITIAL_ERROR_DELAY", "20"), ("CONTROL_PLANE_MAX_BACKOFF", "30")];
    let (mut one, other) =
        (Stage::set_with(&settings).await, Stage::set_with(&[("SERVER_ID", "edge-2")]).await);
    let tmux = Tmux::start();
    tmux.press(&["clear; echo before", "Enter"]);
    let words = format!(
        "{} top --interval 0.2 {} {}; echo ended with $?",
        binary(),
        one.agent.url(""),
        other.agent.url("")
    );
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["> edge-test-1", "  edge-2", "edge-test-1 healthy"]).await;
    one.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let pushed = load::push_sessions(&one.redis, "s", 10, 8).await;
    assert_eq!(pushed, 110);
    tmux.shows(&["down: overloaded, next probe in ", "usage        80", "edge-test-1 degraded"]).await;
    tmux.press(&["Tab"]);
    tmux.shows(&["> edge-2", "edge-2 healthy"]).await;
    tmux.press(&["Up"]);
    one.agent.kill();
    tmux.shows(&["> edge-test-1", "edge-test-1 OFFLINE", "no answer", "usage        80"]).await;
    one.agent.start();
    let back = tmux.shows(&["> edge-test-1", "edge-test-1 degraded"]).await;
    assert!(!back.contains("OFFLINE"), "{back}");
    tmux.press(&["?"]);
    tmux.shows(&["show or hide this help"]).await;
    tmux.press(&["?"]);
    tmux.press(&["q"]);
    tmux.is_given_back("0").await;
}

#[tokio::test]
async fn the_terminal_is_restored_after_a_signal_and_after_a_panic() {
    let stage = Stage::set().await;
    let url = stage.agent.url("");
    let tmux = Tmux::start();
    tmux.press(&["clear; echo before", "Enter"]);
    let pid = tmux.0.path().join("pid");
    let words = format!(
        "(echo $$ > {}; exec sh -c 'echo $$ > {}; exec {} top {url}'); echo ended with $?",
        pid.display(),
        pid.display(),
        binary()
    );
    tmux.press(&[&words, "Enter"]);
    tmux.shows(&["edge-test-1 healthy"]).await;
    let pid = std::fs::read_to_string(pid).expect("its id");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number")).expect("an id");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be signalled");
    tmux.is_given_back("0").await;

    tmux.press(&["clear; echo before", "Enter"]);
    let words = format!(
        "RUST_BACKTRACE=0 FAILPOINT=top::drawn=2=panic {} top {url} 2>&1; echo ended with $?",
        binary()
    );
    tmux.press(&[&words, "Enter"]);
    tmux.is_given_back("101").await;
    assert!(tmux.screen().contains("a test wants a panic here"), "{}", tmux.screen());
}
