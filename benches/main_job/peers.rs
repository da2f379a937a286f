//! The same records through the agent and through syslog-ng, both fed while they run, both to a sandbox that counts what is
//! missing, repeated and out of order.
//!
//! syslog-ng reads lines from a TCP connection, keeps them in its reliable disk buffer, and posts 1,000 at a time. Each line
//! is a record as a batch encloses it: syslog-ng has nothing to parse.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::harness::{Agent, Port, RedisServer, Sandbox, USAGE, free_port};
use super::report::{not_measured, number, row, scaled};
use super::wan::load::record;
use super::wan::measure::Figures;

const RECORDS: u32 = 200_000;
const SESSIONS: u32 = 200;
/// Fed at once.
const PART: usize = 10_000;
/// After so long without a record no more are expected: longer than any pause of the two before they try again.
const QUIET: Duration = Duration::from_secs(20);
/// How long syslog-ng may take to listen, and to read what is written to it.
const PATIENCE: Duration = Duration::from_secs(60);
const WORKERS: [u32; 2] = [1, 16];

pub(crate) async fn run() {
    println!(
        "{} records of {SESSIONS} sessions, fed while they are delivered:",
        number(scaled(RECORDS).into())
    );
    let is_installed = Command::new("syslog-ng").arg("--version").output().is_ok();
    if !is_installed {
        not_measured("peers", "syslog-ng, which is not installed");
    }
    let peers = || std::iter::once(None).chain(WORKERS.map(Some)).take(if is_installed { 3 } else { 1 });
    for (place, link) in [("loopback", &[][..]), ("100 ms", &["--link", "rtt=100ms"])] {
        for workers in peers() {
            let name = format!("{}, {place}", name(workers));
            match measure(workers, link, false).await {
                Ok(figures) => figures.report("peers", &name, None),
                Err(error) => not_measured("peers", &format!("{name}: {error}")),
            }
        }
    }
    println!("the same, killed (SIGKILL) when half of the records are fed, and started again at once:");
    for workers in peers() {
        match measure(workers, &[], true).await {
            Ok(figures) => row("killed", &name(workers), &figures.account()),
            Err(error) => not_measured("killed", &format!("{}: {error}", name(workers))),
        }
    }
}

fn name(workers: Option<u32>) -> String {
    workers.map_or("the agent".to_owned(), |workers| format!("syslog-ng, workers({workers})"))
}

/// From the first record that is fed until the last that arrives. Without workers it is the agent that is measured.
async fn measure(workers: Option<u32>, link: &[&str], is_killed: bool) -> Result<Figures> {
    let sandbox = Sandbox::start(link);
    let mut peer = match workers {
        None => Peer::agent(&sandbox.url).await,
        Some(workers) => Peer::SyslogNg(SyslogNg::new(&sandbox.url, workers)?),
    };
    let records: Vec<String> = (0..scaled(RECORDS))
        .map(|n| {
            let session = format!("session-{}", n % SESSIONS);
            peer.message(&session, record(&session, Some(n / SESSIONS), None))
        })
        .collect();
    let (first, second) = records.split_at(records.len() / 2);
    peer.start().await?;
    let begun = Instant::now();
    peer.feed(first).await?;
    if is_killed {
        peer.kill();
        peer.start().await?;
    }
    peer.feed(second).await?;
    let (mut arrived, mut at) = (0, Instant::now());
    while arrived < records.len() as u64 && at.elapsed() < QUIET {
        let now = sandbox.accounts().await.processed();
        if now > arrived {
            (arrived, at) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = arrived as f64 / (at - begun).as_secs_f64();
    Ok(Figures::of(&sandbox, records.len() as u64, rate, peer.pid()).await)
}

enum Peer {
    Agent(RedisServer, Box<Agent>),
    SyslogNg(SyslogNg),
}

impl Peer {
    async fn agent(url: &str) -> Self {
        let redis = RedisServer::start().await;
        let agent = Agent::new(&redis, url);
        Self::Agent(redis, agent.into())
    }

    /// A record as it is fed.
    fn message(&self, session: &str, record: String) -> String {
        match self {
            Self::Agent(..) => record,
            Self::SyslogNg(_) => format!(
                "{{\"api_session_id\":\"{session}\",\"records\":[{{\"kind\":\"usage_record\",\"body\":{record}}}]}}\n"
            ),
        }
    }

    async fn start(&mut self) -> Result<()> {
        match self {
            Self::Agent(_, agent) => {
                agent.start();
                agent.ready().await;
                Ok(())
            }
            Self::SyslogNg(syslog_ng) => syslog_ng.start(),
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Agent(_, agent) => agent.kill(),
            Self::SyslogNg(syslog_ng) => syslog_ng.kill(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Agent(_, agent) => agent.pid(),
            Self::SyslogNg(syslog_ng) => syslog_ng.running.as_ref().expect("it runs").0.id(),
        }
    }

    async fn feed(&mut self, records: &[String]) -> Result<()> {
        for part in records.chunks(PART) {
            match self {
                Self::Agent(redis, _) => redis.push(USAGE, part).await,
                Self::SyslogNg(syslog_ng) => syslog_ng.feed(part)?,
            }
        }
        Ok(())
    }
}

struct SyslogNg {
    dir: TempDir,
    port: Port,
    /// With the connection that it reads.
    running: Option<(Child, TcpStream)>,
}

impl SyslogNg {
    fn new(url: &str, workers: u32) -> Result<Self> {
        let (dir, port) = (tempfile::tempdir()?, free_port());
        let folder = dir.path().display();
        let settings = format!(
            r#"@version: 3.35
options {{ stats-freq(0); time-reopen(1); }};
source records {{
  network(ip("127.0.0.1") port({port}) transport("tcp") flags(no-parse) max-connections(1) log-iw-size(10000) log-fetch-limit(1000));
}};
destination control-plane {{
  http(url("{url}/api/v1/records/batch") method("POST") headers("Content-Type: application/json", "X-API-Key: k")
    body-prefix('{{"sessions":[') body("${{MESSAGE}}") delimiter(",") body-suffix("]}}") batch-lines(1000) workers({workers})
    disk-buffer(reliable(yes) disk-buf-size(1073741824) mem-buf-size(67108864) dir("{folder}")));
}};
log {{ source(records); destination(control-plane); flags(flow-control); }};
"#
        );
        std::fs::write(dir.path().join("syslog-ng.conf"), settings)?;
        Ok(Self { dir, port, running: None })
    }

    /// Starts it and connects to it.
    fn start(&mut self) -> Result<()> {
        let file = |name: &str| self.dir.path().join(name);
        let log = File::create(file("log"))?;
        let mut command = Command::new("syslog-ng");
        command.args(["--foreground", "--no-caps", "--stderr"]);
        for (flag, name) in [
            ("cfgfile", "syslog-ng.conf"),
            ("persist-file", "persist"),
            ("control", "control"),
            ("pidfile", "pid"),
        ] {
            command.arg(format!("--{flag}={}", file(name).display()));
        }
        let mut process = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let begun = Instant::now();
        loop {
            if let Ok(connection) = TcpStream::connect(("127.0.0.1", self.port.number())) {
                connection.set_write_timeout(Some(PATIENCE))?;
                self.running = Some((process, connection));
                return Ok(());
            }
            if process.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                // It may have ended already.
                let _ = process.kill();
                process.wait()?;
                let said = std::fs::read_to_string(file("log"))?;
                return Err(Error::other(said.lines().last().unwrap_or("it does not listen").to_owned()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As fast as it reads.
    fn feed(&mut self, lines: &[String]) -> Result<()> {
        let (_, connection) = self.running.as_mut().ok_or(ErrorKind::NotConnected)?;
        connection.write_all(lines.concat().as_bytes())
    }

    fn kill(&mut self) {
        if let Some((mut process, _)) = self.running.take() {
            // It may have ended already.
            let _ = process.kill();
            process.wait().expect("it ends");
        }
    }
}

impl Drop for SyslogNg {
    fn drop(&mut self) {
        self.kill();
    }
}
