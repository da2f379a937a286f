//! The types of commands, and their parameters, parsed and limited. Pure.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{LogLevelBody, NewBandwidth, NewRateLimit, Selection};
use crate::drain::RateLimit;
use crate::telemetry::log::Level;

/// The command types that this agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommandType {
    RefreshPublicKeys,
    HealthCheck,
    GetMetrics,
    PauseDrain,
    ResumeDrain,
    SetRateLimit,
    SetBandwidth,
    SetLogLevel,
    ReplayDeadLetters,
    ReloadConfiguration,
}

impl CommandType {
    pub(super) const ALL: [Self; 10] = [
        Self::RefreshPublicKeys,
        Self::HealthCheck,
        Self::GetMetrics,
        Self::PauseDrain,
        Self::ResumeDrain,
        Self::SetRateLimit,
        Self::SetBandwidth,
        Self::SetLogLevel,
        Self::ReplayDeadLetters,
        Self::ReloadConfiguration,
    ];

    /// The name in the contract and in metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::RefreshPublicKeys => "refresh_public_keys",
            Self::HealthCheck => "health_check",
            Self::GetMetrics => "get_metrics",
            Self::PauseDrain => "pause_drain",
            Self::ResumeDrain => "resume_drain",
            Self::SetRateLimit => "set_rate_limit",
            Self::SetBandwidth => "set_bandwidth",
            Self::SetLogLevel => "set_log_level",
            Self::ReplayDeadLetters => "replay_dead_letters",
            Self::ReloadConfiguration => "reload_configuration",
        }
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Whether it changes something, and so needs a token.
    pub(super) const fn is_change(self) -> bool {
        !matches!(self, Self::RefreshPublicKeys | Self::HealthCheck | Self::GetMetrics)
    }

    /// Whether a restart of the agent undoes its change.
    pub(super) const fn ends_with_the_process(self) -> bool {
        matches!(
            self,
            Self::PauseDrain
                | Self::ResumeDrain
                | Self::SetRateLimit
                | Self::SetBandwidth
                | Self::SetLogLevel
        )
    }
}

/// A parsed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    RefreshPublicKeys,
    HealthCheck,
    GetMetrics,
    PauseDrain,
    ResumeDrain,
    SetRateLimit(RateLimit),
    SetBandwidth(u64),
    SetLogLevel(Level),
    ReplayDeadLetters(Selection),
    ReloadConfiguration,
}

impl Order {
    /// Parses a command, or says what is wrong with its parameters. Types without parameters ignore them.
    pub(super) fn new(kind: CommandType, parameters: &Value) -> Result<Self, String> {
        Ok(match kind {
            CommandType::RefreshPublicKeys => Self::RefreshPublicKeys,
            CommandType::HealthCheck => Self::HealthCheck,
            CommandType::GetMetrics => Self::GetMetrics,
            CommandType::PauseDrain => Self::PauseDrain,
            CommandType::ResumeDrain => Self::ResumeDrain,
            CommandType::ReloadConfiguration => Self::ReloadConfiguration,
            CommandType::SetLogLevel => Self::SetLogLevel(read::<LogLevelBody>(parameters)?.level),
            CommandType::SetRateLimit => {
                let limit = read::<NewRateLimit>(parameters)?.limit();
                Self::SetRateLimit(limit.map_err(|wrong| format!("parameters: {wrong}"))?)
            }
            CommandType::SetBandwidth => {
                let limit = read::<NewBandwidth>(parameters)?.limit();
                Self::SetBandwidth(limit.map_err(|wrong| format!("parameters: {wrong}"))?)
            }
            CommandType::ReplayDeadLetters => {
                let selection: Selection = read(parameters)?;
                if let Some(fault) = selection.fault() {
                    return Err(format!("parameters: {fault}"));
                }
                Self::ReplayDeadLetters(selection)
            }
        })
    }
}

fn read<T: DeserializeOwned>(parameters: &Value) -> Result<T, String> {
    // serde also accepts an array, whose values it would take for the fields in order.
    if parameters.is_array() {
        return Err("parameters: not an object".to_owned());
    }
    T::deserialize(parameters).map_err(|error| format!("parameters: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_the_contracts_and_each_finds_its_type() {
        for kind in CommandType::ALL {
            assert_eq!(CommandType::of(kind.name()), Some(kind));
        }
        for name in ["", "ping", "PAUSE_DRAIN", "pause_drain ", "unknown"] {
            assert_eq!(CommandType::of(name), None, "{name}");
        }
    }

    #[test]
    fn only_read_commands_need_no_token() {
        let free = CommandType::ALL.into_iter().filter(|kind| !kind.is_change()).map(CommandType::name);
        assert_eq!(free.collect::<Vec<_>>(), ["refresh_public_keys", "health_check", "get_metrics"]);
    }

    #[test]
    fn parameters_are_read_within_their_limits() {
        let order = Order::new(CommandType::SetRateLimit, &json!({"rate_limit": 5, "burst": 2}));
        assert_eq!(order, Ok(Order::SetRateLimit(RateLimit { per_second: 5, burst: 2 })));
        let order = Order::new(CommandType::SetLogLevel, &json!({"level": "WARN"}));
        assert_eq!(order, Ok(Order::SetLogLevel(Level::Warning)));
        assert!(Order::new(CommandType::ReplayDeadLetters, &json!({"reason": "refused"})).is_ok());
        assert_eq!(Order::new(CommandType::PauseDrain, &json!({"reason": "x"})), Ok(Order::PauseDrain));
        for (kind, parameters) in [
            (CommandType::SetRateLimit, json!(null)),
            (CommandType::SetBandwidth, json!({})),
            (CommandType::SetBandwidth, json!({"bandwidth": -1})),
            (CommandType::SetBandwidth, json!({"bandwidth": 107_374_182_401_u64})),
            (CommandType::SetRateLimit, json!({})),
            (CommandType::SetRateLimit, json!({"rate_limit": -1})),
            (CommandType::SetRateLimit, json!({"rate_limit": 1.5})),
            (CommandType::SetRateLimit, json!({"rate_limit": "5"})),
            (CommandType::SetRateLimit, json!({"rate_limit": 1_000_001})),
            (CommandType::SetRateLimit, json!({"rate_limit": 1, "burst": 1_000_001})),
            (CommandType::SetRateLimit, json!({"rate_limit": 1, "more": 1})),
            (CommandType::SetLogLevel, json!({"level": "LOUD"})),
            (CommandType::SetLogLevel, json!("DEBUG")),
            (CommandType::ReplayDeadLetters, json!(null)),
            (CommandType::ReplayDeadLetters, json!({})),
            (CommandType::ReplayDeadLetters, json!({"all": true, "reason": "refused"})),
            (CommandType::ReplayDeadLetters, json!({"reason": "whim"})),
            (CommandType::ReplayDeadLetters, json!({"ids": (0..501).collect::<Vec<_>>()})),
        ] {
            let wrong = Order::new(kind, &parameters).expect_err("no such parameters");
            assert!(wrong.starts_with("parameters: "), "{kind:?} {parameters}: {wrong}");
        }
    }
}
