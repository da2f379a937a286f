//! The ControlPlane's side of remote commands: hands them out with their tokens, publishes keys, takes results.

mod checks;
pub mod plan;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use dataplane_agent::admin::{Reload, ReloadError};
use dataplane_agent::control_plane::WireAnswer;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::agent::SERVER_ID;
use crate::bugs::Bug;
use crate::chance::Chance;
use crate::server::{answer, failure_of};
use crate::world::{State, World};

use plan::{Action, PlannedCommand, Proof};

/// Tolerance between the clocks: `Date` has whole seconds, and requests take time.
const CLOCK_ERROR: Duration = Duration::from_secs(60);
/// The setting that a reload reports as needing a restart.
const NEEDS_RESTART: &str = "REDIS_HOST";

/// A command's result as reported.
#[derive(Clone, Debug, PartialEq)]
struct CommandReport {
    success: bool,
    error: Option<String>,
    /// Without the field that a restart adds.
    result: Value,
    timestamp: String,
}

/// The state of a command.
#[derive(Clone, Debug, Default)]
struct IssuedCommand {
    token: Option<String>,
    /// When the token expires, in seconds since the Unix epoch.
    expires: u64,
    /// When it was first handed out.
    handed_out: Option<Duration>,
    report: Option<CommandReport>,
}

/// A rate limit in force during the agent's life that reported it.
#[derive(Clone, Copy, Debug)]
struct Limit {
    life: u64,
    since: Duration,
    per_second: u32,
    burst: u32,
    sent: u64,
}

/// The state of all commands.
pub struct CommandQueue {
    chance: Chance,
    issued: Vec<IssuedCommand>,
    /// When the signing key is replaced.
    new_key_at: Duration,
    /// Whether the new key has a name of its own.
    is_key_renamed: bool,
    /// Probability that a command is handed out again after its result.
    again: f64,
    /// The agent's life that reported a pause, until an order to resume is handed out.
    paused: Option<u64>,
    limit: Option<Limit>,
    /// Number of reloads.
    reloads: usize,
}

impl CommandQueue {
    /// The commands of a plan.
    pub fn new(seed: u64, commands: &[PlannedCommand]) -> Self {
        let mut chance = Chance::new(seed, 8);
        Self {
            issued: vec![IssuedCommand::default(); commands.len()],
            new_key_at: Duration::from_secs(chance.of(&[30, 300, 86_400])),
            is_key_renamed: chance.happens(0.5),
            again: chance.of(&[0.0, 0.1, 0.9]),
            paused: None,
            limit: None,
            reloads: 0,
            chance,
        }
    }
}

/// An Ed25519 key as PKCS #8 (RFC 8410 §7).
fn signing_key(number: u8) -> EncodingKey {
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    EncodingKey::from_ed_der(&[&PREFIX[..], &[number; 32]].concat())
}

fn id(number: usize) -> String {
    format!("c-{number}")
}

impl State {
    /// The ControlPlane's time, in seconds since the Unix epoch.
    fn unix_seconds(&self) -> u64 {
        self.true_time().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// The number and name of the current signing key.
    fn key(&self) -> (u8, String) {
        let number = u8::from(self.now() >= self.commands.new_key_at);
        (number, self.key_name(number))
    }

    fn key_name(&self, number: u8) -> String {
        if self.commands.is_key_renamed { format!("k-{number}") } else { "k".into() }
    }

    /// Answers a poll.
    pub fn hand_out(&mut self) -> WireAnswer {
        let (plan, now) = (Arc::clone(&self.plan), self.now());
        let mut commands = Vec::new();
        for (number, planned) in plan.commands.iter().enumerate() {
            let is_due = planned.at <= now
                && planned.after.is_none_or(|before| self.commands.issued[before].report.is_some());
            let is_known = self.commands.issued[number].report.is_some();
            if !is_due || is_known && !self.commands.chance.happens(self.commands.again) {
                continue;
            }
            if self.commands.issued[number].handed_out.is_none() {
                self.sign(number, planned);
                self.note(&format!("hands out {} {:?}", id(number), planned.action));
            }
            // It may be executed from now on; not again, once its result is known.
            if !is_known && planned.action == Action::Resume {
                self.commands.paused = None;
            }
            if !is_known && matches!(planned.action, Action::SetRateLimit(..)) {
                self.commands.limit = None;
            }
            commands.push(json!({
                "command_id": id(number), "command_type": planned.action.name(),
                "parameters": planned.action.parameters(), "timestamp": now.as_secs(),
                "token": self.commands.issued[number].token,
            }));
        }
        if self.commands.chance.happens(0.1) {
            commands.insert(0, json!({"command_id": 7}));
        }
        answer(200, json!({"commands": commands}).to_string())
    }

    fn sign(&mut self, number: usize, planned: &PlannedCommand) {
        let now = self.unix_seconds();
        let (key, kid) = self.key();
        let mut expires = now + planned.lifetime.as_secs();
        let mut claims = json!({
            "aud": SERVER_ID, "jti": id(number), "command_type": planned.action.name(),
            "parameters": planned.action.parameters(),
        });
        let mut signer = signing_key(key);
        match planned.proof {
            Proof::Good | Proof::Missing => {}
            Proof::Forged => signer = signing_key(u8::MAX),
            Proof::OtherServer => claims["aud"] = "edge-2".into(),
            Proof::OtherCommand => claims["jti"] = "c-other".into(),
            Proof::OtherType => claims["command_type"] = "health_check".into(),
            Proof::OtherParameters => claims["parameters"] = json!({"rate_limit": 1}),
            Proof::Expired => expires = now - CLOCK_ERROR.as_secs(),
            Proof::NotYet => claims["nbf"] = (now + 7 * 24 * 3600).into(),
        }
        claims["exp"] = expires.into();
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(kid);
        let token = jsonwebtoken::encode(&header, &claims, &signer).expect("claims can be signed");
        let token = (planned.proof != Proof::Missing).then_some(token);
        let handed_out = Some(self.now());
        self.commands.issued[number] =
            IssuedCommand { token, expires, handed_out, ..IssuedCommand::default() };
    }

    /// Publishes the keys.
    pub fn public_keys(&self) -> WireAnswer {
        let jwk = |number: u8, kid: &str| {
            let key = Jwk::from_encoding_key(&signing_key(number), Algorithm::EdDSA).expect("a key");
            let mut key = serde_json::to_value(key).expect("a key");
            key["kid"] = kid.into();
            key
        };
        let (number, kid) = self.key();
        let mut keys = vec![jwk(number, &kid)];
        // Tokens signed before are still valid.
        keys.extend((0..number).map(|number| jwk(number, &self.key_name(number))));
        if self.has(Bug::ObeyAForgedToken) {
            keys.push(jwk(u8::MAX, &kid));
        }
        answer(200, json!({"success": true, "data": {"keys": keys}}).to_string())
    }

    /// Takes a command's result from the agent in this life.
    pub fn command_result(&mut self, body: &Bytes, key: Option<Uuid>, life: u64) -> WireAnswer {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let name = body["command_id"].as_str().unwrap_or_default().to_owned();
        let number = (0..self.commands.issued.len()).find(|number| id(*number) == name);
        let Some(number) = number.filter(|number| self.commands.issued[*number].handed_out.is_some()) else {
            self.violation(format!("the result of a command that was never given: {name}"));
            return failure_of(404);
        };
        if key != Some(Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("command_result:{name}").as_bytes())) {
            self.violation(format!("the result of {name} has another key than its own"));
        }
        let mut result = body["result"].clone();
        let is_undone = result.as_object_mut().and_then(|fields| fields.remove("ended_by_restart")).is_some();
        let report = CommandReport {
            success: body["success"] == true,
            error: body["error_message"].as_str().map(str::to_owned),
            result,
            timestamp: body["execution_timestamp"].to_string(),
        };
        self.note(&format!("result of {name}: {} {:?}", report.success, report.error));
        self.check_report(number, &report);
        if report.success && !is_undone && self.commands.issued[number].report.is_none() {
            self.took_effect(number, life);
        }
        self.commands.issued[number].report.get_or_insert(report);
        answer(200, json!({"success": true}).to_string())
    }
}

/// Settings that can be reloaded; counts the reloads.
pub struct ReloadedSettings(pub World);

impl Reload for ReloadedSettings {
    fn reload(self: Arc<Self>) -> BoxFuture<'static, Result<Vec<String>, ReloadError>> {
        let mut state = self.0.state();
        state.commands.reloads += 1;
        state.note("reloads");
        std::future::ready(Ok(vec![NEEDS_RESTART.to_owned()])).boxed()
    }
}
