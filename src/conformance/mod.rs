//! Checks whether a `ControlPlane` keeps what the agent relies on: one row per rule, with the sentence of the contract.
//!
//! A run uses the agent's own client, credentials and bytes. It registers a server of its own (`conformance-<run>`) and
//! sends records of its own sessions and customer. It touches neither Redis nor an outbox.
//!
//! * Each rule is one small function in `answers`, `servers`, `records`, `credentials`, `sessions`, `batches`, `encodings`
//!   or `totals`; [`RULES`] gives their order.
//! * `rule` defines a rule and its verdict; `run` holds what the rules share.
//! * `wire` makes the requests and bounds them: one at a time, each with the client's time-out, [`REQUESTS_MOST`] in all.
//! * `samples` makes the records, `ledger` notes the fate of each, `accounts` asks the server what it counted.
//! * A rule that cannot be observed without the server's developer is "not seen", with advice. It is not a breach.

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
use rule::{Rule, not_seen};
use run::{BatchAnswer, Run, delivery, in_words};

/// The most sessions in a run.
pub const SESSIONS_MOST: usize = 20;
/// The most records in a run.
pub const RECORDS_MOST: usize = 60;

/// Advice for a rule that was not tried.
const MEND_FIRST: &str = "fix the failures above and run it again";

/// All rules, in the order they run.
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

/// Every rule: its name, its page in `docs/contract/`, and the sentence it checks.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    RULES.into_iter().flatten().map(|rule| (rule.name, rule.page, rule.sentence))
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The server's address and the credentials. `server_id` is the server that the run registers.
    pub client: Settings,
    /// The region in the registration.
    pub region: String,
    /// The host in the registration.
    pub host: String,
    /// The port in the registration.
    pub port: u16,
    /// How commands' tokens are signed.
    pub algorithm: CommandAlgorithm,
    /// The customer in all records.
    pub customer: String,
    /// Where the server reports what it counted, as the sandbox does.
    pub accounts: Option<Url>,
    /// Requests to send in a burst, to see the server shed load.
    pub burst: u32,
    /// How long to wait for somebody to queue a command.
    pub wait: Duration,
}

/// The id of a new run, which is part of every name that the run creates.
pub fn new_run() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum Unable {
    /// The client cannot be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The accounts cannot be read.
    #[error("cannot read the accounts at {url}: {reason}")]
    Accounts {
        /// Their URL, without user info.
        url: String,
        /// The reason.
        reason: String,
    },
}

/// The result of a run.
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
    /// Rules that passed.
    pub passed: usize,
    /// Rules that failed.
    pub failed: usize,
    /// Rules that could not be observed.
    pub not_seen: usize,
    /// Each rule's result.
    pub rules: Vec<Row>,
    /// Records that the server should have once each, in this order within a session.
    pub counted_once: Vec<SentRecord>,
}

/// Checks every rule. Calls `tell` with each row as soon as it is known.
pub async fn run(setup: Setup, run: &str, mut tell: impl FnMut(&Row)) -> Result<Report, Unable> {
    let server_id = setup.client.server_id.clone();
    let mut state = Run::begin(setup, run).await?;
    let mut rows = Vec::new();
    for rule in RULES.into_iter().flatten() {
        let verdict = match state.wire.is_over() {
            Some(why) => not_seen(format!("not tried: {why}"), MEND_FIRST),
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
