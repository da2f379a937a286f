//! Checks whether a `ControlPlane` keeps what the agent relies on: one row per rule, with the sentence of the contract.
//!
//! A run uses the agent's own client, credentials and bytes. It registers a server of its own (`conformance-<run>`) and
//! sends records of its own sessions and customer. It touches neither Redis nor an outbox.
//!
//! * Each rule is one small function. `answers`, `servers`, `records`, `credentials`, `sessions`, `batches`, `encodings` and
//!   `totals` hold them; [`RULES`] is the order in which they run.
//! * `rule` defines a rule and its verdict, `run` what rules share.
//! * `wire` makes the requests and bounds them: one at a time, each with the client's time-out, [`REQUESTS_MOST`] in all.
//! * `samples` makes the records, `ledger` notes what became of each, `accounts` asks the server what it counted.
//! * A rule that a server shows only with its developer's help is "not seen", with what to do. It counts as no breach.

mod accounts;
mod answers;
mod batches;
mod credentials;
mod encodings;
mod ledger;
mod records;
mod rule;
mod run;
mod samples;
mod servers;
mod sessions;
mod totals;
mod wire;

use std::time::Duration;

use serde::Serialize;
use url::Url;
use uuid::Uuid;

pub use ledger::SentRecord;
pub use rule::{Row, RuleState};
pub use samples::AUDIO_SECONDS;
pub use totals::COUNTED_ONCE;
pub use wire::REQUESTS_MOST;

use crate::control_plane::{ClientError, Settings};
use crate::fleet::commands::CommandAlgorithm;
use rule::{Rule, RuleVerdict};
use run::{BatchAnswer, Run, delivery, in_words};

/// The most sessions of a run, and the most records.
pub const SESSIONS_MOST: usize = 20;
/// See [`SESSIONS_MOST`].
pub const RECORDS_MOST: usize = 60;

/// What to do about a rule that was not tried.
const MEND_FIRST: &str = "fix the failures above and run it again";

/// All rules, in the order in which they are tried.
static RULES: [&[Rule]; 9] = [
    &answers::FIRST,
    &servers::FIRST,
    &records::RULES,
    &credentials::RULES,
    &sessions::RULES,
    &batches::RULES,
    &encodings::RULES,
    &servers::LAST,
    &totals::RULES,
];

/// Every rule by its name, with the page of `docs/contract/` and the sentence there that it is about.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    RULES.into_iter().flatten().map(|rule| (rule.name, rule.page, rule.sentence))
}

/// What a run needs to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the server is, and the credentials. `server_id` is the server that the run registers.
    pub client: Settings,
    /// The region in the registration.
    pub region: String,
    /// The host in the registration.
    pub host: String,
    /// The port in the registration.
    pub port: u16,
    /// How the tokens of commands are signed.
    pub algorithm: CommandAlgorithm,
    /// The customer of all records.
    pub customer: String,
    /// Where the server says what it counted, as the sandbox does.
    pub accounts: Option<Url>,
    /// How many requests to send in a burst, to see the server shed load.
    pub burst: u32,
    /// How long to wait for a command that somebody queues.
    pub wait: Duration,
}

/// The id of a new run. Everything that the run creates has it in its name.
pub fn new_run() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Unable {
    /// The client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The accounts cannot be read.
    #[error("cannot read the accounts at {url}: {reason}")]
    Accounts {
        /// Where, without user info.
        url: String,
        /// Why.
        reason: String,
    },
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// No rule is broken.
    pub ok: bool,
    /// The run's id.
    pub run: String,
    /// The server that was registered.
    pub server_id: String,
    /// The customer of all records.
    pub customer_id: String,
    /// How many requests were made.
    pub requests: u32,
    /// Rules that are kept.
    pub passed: usize,
    /// Rules that are broken.
    pub failed: usize,
    /// Rules that could not be observed.
    pub not_seen: usize,
    /// Each rule.
    pub rules: Vec<Row>,
    /// What the server should have once each, in this order within its session.
    pub counted_once: Vec<SentRecord>,
}

/// Checks every rule; `tell` gets each row as soon as it is known.
pub async fn run(setup: Setup, run: &str, mut tell: impl FnMut(&Row)) -> Result<Report, Unable> {
    let server_id = setup.client.server_id.clone();
    let mut state = Run::begin(setup, run).await?;
    let mut rows = Vec::new();
    for rule in RULES.into_iter().flatten() {
        let verdict = match state.wire.is_over() {
            Some(why) => RuleVerdict::not_seen(format!("not tried: {why}"), MEND_FIRST),
            None => (rule.check)(&mut state).await,
        };
        let row = Row::new(rule, verdict);
        tell(&row);
        rows.push(row);
    }
    let count = |state| rows.iter().filter(|row| row.state == state).count();
    let (passed, failed, not_seen) =
        (count(RuleState::Pass), count(RuleState::Fail), count(RuleState::NotSeen));
    Ok(Report {
        ok: failed == 0,
        run: run.to_owned(),
        server_id,
        customer_id: state.setup.customer,
        requests: state.wire.requests,
        passed,
        failed,
        not_seen,
        rules: rows,
        counted_once: state.ledger.settled(),
    })
}
