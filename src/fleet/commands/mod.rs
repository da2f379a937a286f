//! Commands of the `ControlPlane`: polled, verified, executed once, reported until accepted.
//!
//! ```text
//!  poll ──▶ known? ──▶ allowed? ──▶ note "begun" ──▶ execute ──▶ note result ──▶ report ──▶ note "reported"
//!             │           │          (durable)                    (durable)        ▲
//!             └───────────┴── no ──────────────────────────────────────────────────┘
//! ```
//!
//! * [`order`]: the types of commands and their parameters. Pure.
//! * [`token`]: verifies that a command is the `ControlPlane`'s. Pure.
//! * [`keys`]: the public keys, fetched rarely.
//! * [`journal`]: which commands were begun, and their results; durable in the outbox's database.
//! * [`once`] and [`carry_out`]: execute a command, once. [`report`]: reports results.
//!
//! # Guarantees
//!
//! * A command is recorded, durably, before it is executed, and its result before it is reported. A crash in between neither
//!   repeats nor loses it: a command that was begun and has no recorded result is reported as interrupted.
//! * An id is remembered for `COMMAND_CACHE_TTL` and for as long as its token is valid: a replayed token has no effect.
//! * Changes require a token that verifies. Nothing else about a command is trusted.
//! * Every request needs admission to the link: none is sent while the circuit is open, and each counts against the rate limit.
//!
//! No polls are sent while the `ControlPlane` does not know this server: it then has no commands for it.

mod carry_out;
mod journal;
mod keys;
mod once;
mod order;
mod report;
#[cfg(test)]
mod tests;
mod token;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admin::Operator;
use crate::control_plane::{CallError, Client, Command, Meaning};
use crate::drain::Admission;
use crate::fleet::agent_metrics::{AgentMetrics, Load};
use crate::telemetry::metrics::Metrics;
use crate::time::JitteredInterval;

use journal::Journal;
use keys::{KeyCache, TokenCheck};
use once::Ending;
use order::{CommandType, Order};
pub use token::CommandAlgorithm;
use token::TokenVerifier;

/// The label of every unknown command type, in metrics.
const UNKNOWN: &str = "unknown";
/// New commands handled per round; the rest is delivered again.
const A_ROUND: usize = 100;

/// Settings of remote commands.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `SERVER_ID`: the required audience of tokens.
    pub server_id: String,
    /// Poll interval.
    pub poll_interval: Duration,
    /// The minimum time for which an id is remembered.
    pub cache_ttl: Duration,
    /// The required signing algorithm of tokens.
    pub algorithm: CommandAlgorithm,
    /// How long public keys are cached.
    pub keys_ttl: Duration,
}

/// Checks that a command's token is for this server, by these keys at this time. The error gives the reason.
pub fn check_token(
    command: &Command,
    keys: &JwkSet,
    algorithm: CommandAlgorithm,
    server_id: &str,
    unix_seconds: i64,
) -> Result<(), String> {
    let verified = TokenVerifier::new(algorithm, server_id).verify(command, keys, unix_seconds);
    verified.map(drop).map_err(|refusal| refusal.to_string())
}

/// Executes remote commands.
pub struct CommandExecutor {
    client: Arc<Client>,
    admission: Admission,
    operator: Arc<Operator>,
    agent_metrics: AgentMetrics,
    metrics: Arc<Metrics>,
    registered: watch::Receiver<bool>,
    settings: Settings,
    verifier: TokenVerifier,
    keys: KeyCache,
    journal: Option<Journal>,
    load: Load,
    /// Whether the log has reported that commands wait for keys.
    waits_for_keys: bool,
    /// Why commands of this round cannot be recorded, and the last reason logged.
    unnoted: Option<String>,
    unnoted_said: Option<String>,
    /// The last logged problem with the answers.
    misunderstood_said: Option<String>,
    /// By result: how often the `ControlPlane` answered that it does not exist.
    not_found: HashMap<u64, u32>,
    /// By result: how often reporting it failed on its own.
    unheard: HashMap<u64, u32>,
    /// Results that were given up: if their command is delivered again, it is ignored.
    unwanted: HashSet<u64>,
}

/// The verdict on a command.
enum Judgement {
    /// Execute it; its token expires then.
    Do(Order, Option<i64>),
    /// The command is not allowed.
    Refused(String),
    /// The command cannot be executed.
    Impossible(String),
}

impl CommandExecutor {
    /// For this agent.
    pub fn new(
        settings: Settings,
        admission: Admission,
        operator: Arc<Operator>,
        agent_metrics: AgentMetrics,
        metrics: Arc<Metrics>,
        registered: watch::Receiver<bool>,
    ) -> Self {
        // Every series exists from the start: alerts miss a series that appears with its first event.
        for kind in CommandType::ALL.map(CommandType::name).into_iter().chain([UNKNOWN]) {
            for ending in Ending::ALL {
                metrics.commands.with_label_values(&[kind, ending.label()]).inc_by(0);
            }
        }
        Self {
            verifier: TokenVerifier::new(settings.algorithm, &settings.server_id),
            keys: KeyCache::new(settings.keys_ttl),
            journal: None,
            load: Load::from_now(),
            waits_for_keys: false,
            unnoted: None,
            unnoted_said: None,
            misunderstood_said: None,
            not_found: HashMap::new(),
            unheard: HashMap::new(),
            unwanted: HashSet::new(),
            client: Arc::clone(&agent_metrics.client),
            admission,
            operator,
            agent_metrics,
            metrics,
            registered,
            settings,
        }
    }

    /// Runs until `stop` is true. A command in execution is finished first.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        let interval = JitteredInterval::new(self.settings.poll_interval);
        let mut is_first = true;
        loop {
            let mut registered = self.registered.clone();
            if !*registered.borrow() {
                is_first = true;
            }
            if until(&stop, registered.wait_for(|known| *known)).await.is_none_or(|known| known.is_err()) {
                return;
            }
            let wait = if is_first { interval.first() } else { interval.next() };
            is_first = false;
            if until(&stop, tokio::time::sleep(wait)).await.is_none() {
                return;
            }
            if *self.registered.borrow() && self.round(&stop).await.is_none() {
                return;
            }
        }
    }

    /// Polls for commands and handles them. `None`: time to stop.
    async fn round(&mut self, stop: &watch::Receiver<bool>) -> Option<()> {
        if self.journal.is_none() {
            let outbox = self.operator.outbox.clone();
            match Journal::open(outbox, self.settings.cache_ttl).await {
                Ok(journal) => self.journal = Some(journal),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the journal of commands; no commands are executed");
                    return Some(());
                }
            }
        }
        self.report(stop).await?;
        let commands = self.poll(stop).await?;
        let received = Instant::now();
        let mut waits = None;
        for command in commands {
            if *stop.borrow() {
                return None;
            }
            waits = self.handle(&command, received).await.or(waits);
        }
        self.tell_waiting(waits.as_ref());
        self.tell_unnoted();
        self.report(stop).await
    }

    /// The waiting commands; empty if polling fails.
    async fn poll(&mut self, stop: &watch::Receiver<bool>) -> Option<Vec<Command>> {
        let turn = self.admission.take(self.settings.poll_interval);
        if !until(stop, turn).await? {
            return Some(Vec::new());
        }
        match until(stop, self.client.commands()).await? {
            Ok(answer) => {
                let mut commands = answer.commands;
                let before = commands.len();
                commands.retain(|command| Journal::can_note(&command.command_id));
                let malformed = answer.malformed + before - commands.len();
                let misunderstood =
                    (malformed > 0).then(|| format!("{malformed} of the commands are malformed"));
                self.tell_misunderstood(misunderstood);
                self.keep_unfinished(&mut commands);
                Some(commands)
            }
            // The ControlPlane answers, but wrongly: this does not pass by itself, and the link's state does not show it.
            Err(error @ (CallError::BadAnswer(_) | CallError::Status { meaning: Meaning::Foreign, .. })) => {
                self.tell_misunderstood(Some(error.to_string()));
                Some(Vec::new())
            }
            Err(error) => {
                tracing::debug!(%error, "polling for commands failed");
                Some(Vec::new())
            }
        }
    }

    /// Keeps the commands that need work: known commands do not displace new ones.
    fn keep_unfinished(&self, commands: &mut Vec<Command>) {
        let mut new = 0;
        commands.retain(|command| {
            let known = self.journal.as_ref().and_then(|journal| journal.find(&command.command_id));
            match known {
                Some(number) => self.has_to_be_told_again(number),
                None => {
                    new += 1;
                    new <= A_ROUND
                }
            }
        });
    }

    /// Whether the result was reported, but must be reported again.
    fn has_to_be_told_again(&self, number: u64) -> bool {
        let note = self.journal.as_ref().and_then(|journal| journal.note(number));
        note.is_some_and(|note| note.is_reported) && !self.unwanted.contains(&number)
    }

    /// Handles a command. Returns why it has to wait for the keys, if so.
    async fn handle(&mut self, command: &Command, received: Instant) -> Option<keys::NoKeys> {
        let kind = CommandType::of(&command.command_type);
        if let Some(number) = self.journal.as_ref()?.find(&command.command_id) {
            if self.has_to_be_told_again(number) {
                tracing::info!(
                    command_id = command.command_id,
                    "a command was received again; it is not repeated, its result is reported again"
                );
                self.journal.as_mut()?.report_again(number);
                self.count(kind, Ending::Repeated);
            }
            return None;
        }
        let judgement = match self.judge(kind, command, received).await {
            Ok(judgement) => judgement,
            Err(why) => return Some(why),
        };
        match judgement {
            Judgement::Do(order, expires) => {
                self.carry_out_once(kind, command, order, expires, received).await;
            }
            Judgement::Refused(why) => {
                tracing::warn!(
                    command_id = command.command_id,
                    command_type = kind.map_or(UNKNOWN, CommandType::name),
                    reason = why,
                    "security: a command was refused"
                );
                self.reject(kind, command, Ending::Refused, format!("refused: {why}")).await;
            }
            Judgement::Impossible(why) => {
                tracing::warn!(
                    command_id = command.command_id,
                    command_type = kind.map_or(UNKNOWN, CommandType::name),
                    reason = why,
                    "a command cannot be executed"
                );
                self.reject(kind, command, Ending::Failed, why).await;
            }
        }
        None
    }

    async fn judge(
        &mut self,
        kind: Option<CommandType>,
        command: &Command,
        received: Instant,
    ) -> Result<Judgement, keys::NoKeys> {
        let Some(kind) = kind else {
            return Ok(Judgement::Impossible("unknown command type".into()));
        };
        if command.is_oversized {
            return Ok(Judgement::Impossible("the command is too large".into()));
        }
        let mut expires = None;
        if kind.is_change() {
            let ask = (&*self.client, &self.admission);
            match self.keys.judge(ask, &self.verifier, command, received).await {
                TokenCheck::Good(grant) => expires = Some(grant.expires),
                TokenCheck::Bad(refusal) => return Ok(Judgement::Refused(refusal.to_string())),
                TokenCheck::NotNow(why) => return Err(why),
            }
        }
        // IMPORTANT: parameters are parsed only after authorisation.
        Ok(match Order::new(kind, &command.parameters) {
            Ok(order) => Judgement::Do(order, expires),
            Err(wrong) => Judgement::Impossible(wrong),
        })
    }

    /// Logs once when commands begin to wait for the keys.
    fn tell_waiting(&mut self, waits: Option<&keys::NoKeys>) {
        if let Some(why) = waits
            && !self.waits_for_keys
        {
            tracing::warn!(error = %why, "commands wait: their tokens cannot be verified");
        }
        self.waits_for_keys = waits.is_some();
    }

    /// Logs once when answers to polls become invalid, when the reason changes, and when they are valid again.
    fn tell_misunderstood(&mut self, misunderstood: Option<String>) {
        if misunderstood != self.misunderstood_said {
            match &misunderstood {
                Some(error) => tracing::warn!(
                    error,
                    "the ControlPlane's answer to a poll for commands is invalid; polling continues"
                ),
                None => tracing::info!("polling for commands works again"),
            }
            self.misunderstood_said = misunderstood;
        }
    }

    /// Logs once when commands begin to wait because they cannot be recorded, or when the reason changes.
    fn tell_unnoted(&mut self) {
        let unnoted = self.unnoted.take();
        if let Some(error) = &unnoted
            && unnoted != self.unnoted_said
        {
            tracing::warn!(error, "commands wait: they cannot be recorded");
        }
        self.unnoted_said = unnoted;
    }
}

/// The output of `work`; `None`: time to stop.
async fn until<T>(stop: &watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    let mut stop = stop.clone();
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => None,
        out = work => Some(out),
    }
}
