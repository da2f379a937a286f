//! `dataplane-agent conformance URL`: one row per rule of the contract, with the evidence of a breach.

use std::time::Duration;

use super::out::{print_json, say};
use crate::config::{BaseUrl, Flags, PeerConfig, Sources, load};
use crate::conformance::{self, RECORDS_MOST, REQUESTS_MOST, Report, Row, RuleState, SESSIONS_MOST, Setup};
use crate::record::Kind;

/// Registration data of the run's server, unless flags override it.
const REGION: &str = "conformance";
const HOST: &str = "conformance.invalid";

/// Which ControlPlane to try, and how.
#[derive(clap::Args)]
#[command(after_help = "\
Credentials and TLS are the agent's settings (CONTROL_PLANE_API_KEY, CONTROL_PLANE_AUTH, CONTROL_PLANE_CA_FILE, …), from the
environment, .env or flags. The run registers as the server conformance-<run>; SERVER_ID is ignored, --server-id is not.

Exit codes: 0 no rule failed, 1 a rule failed.")]
pub(super) struct Args {
    /// Base URL of the ControlPlane; use a test server: the run creates sessions and usage there
    #[arg(value_name = "URL")]
    url: BaseUrl,
    /// Customer of all records the run sends
    #[arg(long, value_name = "ID", default_value = "conformance", value_parser = customer)]
    customer: String,
    /// URL of the server's counts, in the format of the sandbox's /sandbox/accounts
    #[arg(long, value_name = "URL")]
    accounts: Option<BaseUrl>,
    /// Sends this many health requests, 16 at a time, to provoke 429 or 503
    #[arg(long, value_name = "REQUESTS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=10_000))]
    burst: u32,
    /// Waits this long for a command for the run's server
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=120))]
    wait: u16,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

fn customer(text: &str) -> Result<String, &'static str> {
    let fits = (1..=256).contains(&text.len()) && !text.contains(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("1 to 256 characters, no control characters") }
}

pub(super) async fn run(args: Args, flags: Flags) -> anyhow::Result<()> {
    let run = conformance::new_run();
    let own = |variable, value: &str| Flags::default().with(variable, Some(value.to_owned()));
    // IMPORTANT: the run registers its server, shuts it down and answers its commands. SERVER_ID in the environment may name
    // an agent at work, so only a flag may replace the run's own server.
    let flags = args.flags.or(flags).with("CONTROL_PLANE_URL", Some(args.url.expose().to_owned()));
    let flags = flags.or(own("SERVER_ID", &format!("conformance-{run}")));
    let flags = flags.or(own("SERVER_REGION", REGION)).or(own("DATAPLANE_HOST", HOST));
    let (config, review) = load::<PeerConfig>(&Sources::of_process(flags))?;
    for warning in review.warnings() {
        eprintln!("warning: {warning}");
    }
    let setup = Setup {
        client: config.control_plane.client_settings(&config.identity, 4),
        region: config.identity.server_region.clone(),
        host: config.identity.dataplane_host.clone(),
        port: config.identity.dataplane_port,
        algorithm: config.control_plane.command_algorithm,
        customer: args.customer,
        accounts: args.accounts.as_ref().map(|url| url.expose().parse()).transpose()?,
        burst: args.burst,
        wait: Duration::from_secs(args.wait.into()),
    };
    announce(&setup, &config, &run);
    let (mut printed, mut above) = (Ok(()), String::new());
    let tell = |row: &Row| {
        if !args.json && printed.is_ok() {
            printed = show(row, &mut above);
        }
    };
    let report = conformance::run(setup, &run, tell).await?;
    printed?;
    let printed = if args.json { print_json(&Whole::of(&report, &config)) } else { sum_up(&report) };
    let broken = report.rules.iter().filter(|row| row.state == RuleState::Fail).map(|row| row.rule);
    anyhow::ensure!(
        report.ok,
        "the ControlPlane breaks the contract: {}",
        broken.collect::<Vec<_>>().join(", ")
    );
    printed
}

/// Prints what the run is about to send.
fn announce(setup: &Setup, config: &PeerConfig, run: &str) {
    let Setup { customer, client, burst, .. } = setup;
    let plane = &config.control_plane;
    eprintln!(
        "Run {run} sends at most {} requests to {:?}. It registers the server {} and shuts it down. It creates up to \
         {SESSIONS_MOST} sessions with ids that begin with \"conformance-\" and up to {RECORDS_MOST} records of the customer \
         {customer:?}. It touches neither Redis nor an outbox.",
        REQUESTS_MOST + burst,
        plane.url,
        client.server_id,
    );
}

/// Prints a row. `above` is the text of the last row that was not seen; it is not repeated.
fn show(row: &Row, above: &mut String) -> anyhow::Result<()> {
    let Row { rule, page, sentence, .. } = row;
    let says = row.says.as_deref().unwrap_or_default();
    match row.state {
        RuleState::Pass => return say!("pass      {rule:<26} {says}"),
        RuleState::NotSeen if says == above => return say!("not seen  {rule:<26} the same"),
        RuleState::NotSeen => {
            says.clone_into(above);
            say!("not seen  {rule:<26} {says}")?;
            return say!("{:<9} {:<26} -> {}", "", "", row.advice.as_deref().unwrap_or_default());
        }
        RuleState::Fail => {}
    }
    say!("FAIL      {rule}")?;
    let consequence = row.consequence.map(str::to_owned);
    let lines = [
        ("sent", row.sent.clone()),
        ("received", row.received.clone()),
        ("expected", row.expected.clone()),
        ("breaks", Some(format!("docs/contract/{page}: \"{sentence}\""))),
        ("effect", consequence),
    ];
    for (what, text) in lines {
        if let Some(text) = text {
            say!("          {what:<9} {text}")?;
        }
    }
    Ok(())
}

fn sum_up(report: &Report) -> anyhow::Result<()> {
    let is_counted = |row: &Row| row.rule == conformance::COUNTED_ONCE && row.state == RuleState::Pass;
    if !report.rules.iter().any(is_counted) {
        list(report)?;
    }
    say!(
        "\n{} rules passed, {} failed, {} not seen; {} requests",
        report.passed,
        report.failed,
        report.not_seen,
        report.requests
    )
}

/// Lists what the server should have counted, one line per session, for a person to check.
fn list(report: &Report) -> anyhow::Result<()> {
    let sent = &report.counted_once;
    let Some(first) = sent.first() else { return Ok(()) };
    let prefix = format!("conformance-{}-", report.run);
    let usage = sent.iter().filter(|sent| sent.kind == Kind::Usage).count();
    say!(
        "\nThe server should have each of these records exactly once, those of a session in this order. They bill the customer \
         {:?} for {usage} usage records: {usage} requests, {:.2} seconds of audio. Transaction ids begin with {prefix}; * marks a \
         record that was sent more than once.",
        report.customer_id,
        usage as f64 * conformance::AUDIO_SECONDS,
    )?;
    let mut sessions = vec![&first.api_session_id];
    for sent in sent {
        if !sessions.contains(&&sent.api_session_id) {
            sessions.push(&sent.api_session_id);
        }
    }
    for session in sessions {
        let mut line = String::new();
        for sent in sent.iter().filter(|sent| sent.api_session_id == *session) {
            let id = sent.transaction_id.strip_prefix(&prefix).unwrap_or(&sent.transaction_id);
            let star = if sent.sent > 1 { "*" } else { "" };
            line.extend([" ", sent.kind.name(), " ", id, star, ","]);
        }
        say!("  {session}:{}", line.trim_end_matches(','))?;
    }
    Ok(())
}

/// The report as JSON.
#[derive(serde::Serialize)]
struct Whole<'a> {
    url: String,
    #[serde(flatten)]
    report: &'a Report,
}

impl<'a> Whole<'a> {
    fn of(report: &'a Report, config: &PeerConfig) -> Self {
        Self { url: format!("{:?}", config.control_plane.url), report }
    }
}
