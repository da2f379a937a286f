//! The same over a link that loses packets: two network namespaces, two TUN devices, and `emulator.c` between them.
//!
//! The bench runs itself again in a network namespace of its own, in which nothing but this exists; the sandbox is in a
//! second one. A pair of virtual Ethernet devices leads to the sandbox's control port, past the link. All of it is gone
//! with the processes. Root.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use super::super::harness::Sandbox;
use super::super::report::not_measured;
use super::measure::{Figures, Setting, measure_against};
use super::{BATCH, Load, Records, is_wanted};

/// The part of the bench that runs inside.
pub(crate) const INSIDE: &str = "lossy-inside";

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/main_job/wan/emulator.c");
const LISTEN: &str = "10.8.0.2:9090";
const CONTROL_LISTEN: &str = "10.8.1.2:9091";
/// Before the sandbox begins, in its namespace: it waits until it has its devices.
const SET_UP: &str = "ip link set lo up && echo up && read -r _ &&
    ip addr add 10.8.0.2 peer 10.8.0.1 dev wanB && ip link set wanB mtu 1500 up &&
    ip addr add 10.8.1.2/30 dev controlB && ip link set controlB up && exec \"$@\"";

/// Runs [`inside`] in a network namespace of its own, where that is allowed.
pub(crate) fn run() {
    if !rustix::process::geteuid().is_root() {
        return not_measured("wan", "links with loss, because network namespaces need root");
    }
    let itself = std::env::current_exe().expect("its own path");
    let status = Command::new("unshare").arg("--net").arg(itself).arg(INSIDE).status();
    let status = status.expect("unshare can be started: it is in util-linux");
    assert!(status.success(), "over a link with loss: {status}");
}

pub(crate) async fn inside() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let emulator = compile(&dir);
    ip("link set lo up");
    let kind = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("it is known");
    println!(
        "over two TUN devices, congestion control {} (asked: ≥ 0.5 of the rate without loss):",
        kind.trim()
    );
    let mut sound = true;
    let mut without = None;
    for (name, loss) in [("no loss", 0.0), ("1 % loss", 0.01), ("3 % loss", 0.03)] {
        // The others are measured against that without.
        if loss > 0.0 && !is_wanted(name) {
            continue;
        }
        let figures = row(&emulator, loss).await;
        sound &= figures.is_sound();
        let clean: f64 = *without.get_or_insert(figures.rate);
        let limit = (loss > 0.0).then_some(clean);
        figures.report("wan", &format!("100 ms, 20 sessions, two devices, {name}"), limit);
    }
    assert!(sound, "records were lost, out of order, or repeated under another key");
}

async fn row(emulator: &Path, loss: f64) -> Figures {
    let link = Emulator::start(emulator, loss);
    ip("addr add 10.8.0.1 peer 10.8.0.2 dev wanA");
    ip("link set wanA mtu 1500 up");
    ip("link add name controlA type veth peer name controlB");
    ip("addr add 10.8.1.1/30 dev controlA");
    ip("link set controlA up");
    let sandbox = start_sandbox();
    let setting = Setting::plain(Load::Usage { sessions: 20 }, Records::Many.number(), BATCH);
    let mut figures = measure_against(&setting, &sandbox).await;
    figures.bytes = Some(link.bytes(figures.records()));
    // At once: a namespace is taken down some time after its last process.
    ip("link delete controlA");
    figures
}

fn start_sandbox() -> Sandbox {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", SET_UP, "sh", env!("CARGO_BIN_EXE_dataplane-agent"), "sandbox"]);
    command.args(["--listen", LISTEN, "--control-listen", CONTROL_LISTEN]);
    Sandbox::start_by(command, |process, lines| {
        let up = lines.next().expect("a line").expect("it can be read");
        assert_eq!(up, "up");
        for device in ["wanB", "controlB"] {
            ip(&format!("link set {device} netns {}", process.id()));
        }
        let mut input = process.stdin.take().expect("its input");
        input.write_all(b"\n").expect("it waits for its devices");
    })
}

fn ip(words: &str) {
    let status =
        Command::new("ip").args(words.split(' ')).status().expect("ip can be started: it is in iproute2");
    assert!(status.success(), "ip {words}: {status}");
}

fn compile(dir: &TempDir) -> PathBuf {
    let program = dir.path().join("emulator");
    let status = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(SOURCE).status();
    assert!(status.expect("a C compiler").success(), "{SOURCE} cannot be compiled");
    program
}

/// The program between the two devices; they are gone with it.
struct Emulator {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Emulator {
    /// 50 ms each way, without a rate.
    fn start(program: &Path, loss: f64) -> Self {
        let mut process = Command::new(program)
            .args(["wanA", "wanB", "50000", &loss.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator can be started");
        let input = process.stdin.take().expect("its input");
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        let mut ready = String::new();
        output.read_line(&mut ready).expect("it can be read");
        assert_eq!(ready.trim(), "ready");
        Self { process, input, output }
    }

    /// Carried a record so far, up and down, headers of packets and all.
    fn bytes(mut self, records: u64) -> (f64, f64) {
        self.input.write_all(b"\n").expect("it can be asked");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        let mut numbers = line.split_whitespace().map(|number| number.parse::<f64>().expect("a number"));
        let mut next = || numbers.next().expect("two numbers") / records as f64;
        (next(), next())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // One that has ended already is no fault here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
