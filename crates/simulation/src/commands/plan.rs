//! The commands of a seed's plan.

use std::time::Duration;

use serde_json::{Value, json};

use crate::chance::Chance;
use crate::plan::faults::What;

/// How long a token may be valid.
const LIFETIMES: [Duration; 3] =
    [Duration::from_secs(120), Duration::from_secs(3600), Duration::from_secs(24 * 3600)];

/// A planned command.
#[derive(Clone, Debug)]
pub struct PlannedCommand {
    /// When it is issued.
    pub at: Duration,
    /// What it orders.
    pub action: Action,
    /// Its token.
    pub proof: Proof,
    /// How long the token is valid.
    pub lifetime: Duration,
    /// The command whose result it waits for.
    pub after: Option<usize>,
}

/// What a command orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the commands")]
pub enum Action {
    HealthCheck,
    GetMetrics,
    RefreshPublicKeys,
    Pause,
    Resume,
    SetRateLimit(u32, u32),
    SetLogLevel,
    Replay,
    Reload,
    Unknown,
}

impl Action {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HealthCheck => "health_check",
            Self::GetMetrics => "get_metrics",
            Self::RefreshPublicKeys => "refresh_public_keys",
            Self::Pause => "pause_drain",
            Self::Resume => "resume_drain",
            Self::SetRateLimit(..) => "set_rate_limit",
            Self::SetLogLevel => "set_log_level",
            Self::Replay => "replay_dead_letters",
            Self::Reload => "reload_configuration",
            Self::Unknown => "make_coffee",
        }
    }

    pub(super) fn parameters(self) -> Value {
        match self {
            Self::SetRateLimit(limit, burst) => json!({"rate_limit": limit, "burst": burst}),
            Self::SetLogLevel => json!({"level": "INFO"}),
            Self::Replay => json!({"all": true}),
            _ => Value::Null,
        }
    }

    /// Whether it changes something: it then needs a token and leaves an audit line.
    pub(super) fn is_change(self) -> bool {
        !matches!(self, Self::HealthCheck | Self::GetMetrics | Self::RefreshPublicKeys | Self::Unknown)
    }

    /// Whether it always succeeds once executed.
    pub(super) fn is_sure(self) -> bool {
        !matches!(self, Self::RefreshPublicKeys | Self::Replay | Self::Unknown)
    }
}

/// A command's token: good, or what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each says what is wrong")]
pub enum Proof {
    Good,
    Missing,
    Forged,
    OtherServer,
    OtherCommand,
    OtherType,
    OtherParameters,
    Expired,
    NotYet,
}

/// The commands of a seed's plan.
pub fn of(seed: u64, length: Duration, faults: &[What]) -> Vec<PlannedCommand> {
    let chance = &mut Chance::new(seed, 7);
    let count = chance.of(&[0, 0, 1, 3, 8, 20]);
    // Pauses among the plan's faults are ended by the run itself.
    let may_pause = !faults.contains(&What::Paused);
    let mut commands: Vec<PlannedCommand> = Vec::new();
    for _ in 0..count {
        let at = length.mul_f64(chance.part());
        let action = match chance.within(0, 11) {
            0 | 1 => chance.of(&[Action::HealthCheck, Action::GetMetrics]),
            2 => Action::RefreshPublicKeys,
            3 | 4 if may_pause => Action::Pause,
            5..=7 => Action::SetRateLimit(chance.size(5, 200) as u32, chance.of(&[0, 0, 1, 30])),
            8 => Action::SetLogLevel,
            9 => Action::Replay,
            10 => Action::Unknown,
            _ => Action::Reload,
        };
        let bad = [
            Proof::Missing,
            Proof::Forged,
            Proof::OtherServer,
            Proof::OtherCommand,
            Proof::OtherType,
            Proof::OtherParameters,
            Proof::Expired,
            Proof::NotYet,
        ];
        let proof = if action.is_change() && chance.happens(0.3) { chance.of(&bad) } else { Proof::Good };
        let lifetime = chance.of(&LIFETIMES);
        commands.push(PlannedCommand { at, action, proof, lifetime, after: None });
        if action == Action::Pause && proof == Proof::Good {
            let resume = PlannedCommand {
                at: at + chance.time(Duration::from_secs(1), Duration::from_secs(120)),
                action: Action::Resume,
                proof: Proof::Good,
                lifetime: LIFETIMES[2],
                after: Some(commands.len() - 1),
            };
            commands.push(resume);
        }
    }
    commands
}
