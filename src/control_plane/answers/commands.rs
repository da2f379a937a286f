//! The waiting commands.

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::BadAnswer;
use crate::secret::Secret;

/// Maximum bytes of a command; known ones are far smaller: a token repeats the parameters, a few KiB.
const COMMAND_MAX_BYTES: usize = 128 << 10;
/// Bytes of commands kept per answer: parsed JSON takes a multiple of its length. Dropped commands are delivered again.
const COMMANDS_KEPT_BYTES: usize = 1 << 20;

/// A command from the `ControlPlane`. Unauthenticated until its token is verified.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Command {
    /// Its permanent ID; not empty.
    pub command_id: String,
    /// The type of the command.
    pub command_type: String,
    /// Its parameters; null if absent.
    #[serde(default)]
    pub parameters: Value,
    /// Its time of issue, as sent.
    #[serde(default)]
    pub timestamp: Value,
    /// Its token.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Whether it is too large; then only its ID and type were read.
    #[serde(skip)]
    pub is_oversized: bool,
}

impl Command {
    /// Parses a command from an answer; `None` if it is malformed.
    fn parse(raw: &RawValue) -> Option<Self> {
        /// A command's identifying fields.
        #[derive(Deserialize)]
        struct Label {
            command_id: String,
            command_type: String,
        }
        let raw = raw.get();
        let command = if raw.len() <= COMMAND_MAX_BYTES {
            serde_json::from_str(raw).ok()?
        } else {
            let Label { command_id, command_type } = serde_json::from_str(raw).ok()?;
            Self {
                command_id,
                command_type,
                parameters: Value::Null,
                timestamp: Value::Null,
                token: None,
                is_oversized: true,
            }
        };
        Some(command).filter(|command| !command.command_id.is_empty())
    }
}

/// The waiting commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commands {
    /// In the order of the answer.
    pub commands: Vec<Command>,
    /// Number of malformed commands, which do not block the others.
    pub malformed: usize,
}

/// Parses the waiting commands.
pub fn parse_commands(body: &[u8]) -> Result<Commands, BadAnswer> {
    #[derive(Deserialize)]
    struct Waiting {
        #[serde(deserialize_with = "one_by_one")]
        commands: Commands,
    }
    // An invalid character in one command must not hold up the others.
    let Waiting { commands } = serde_json::from_str(&String::from_utf8_lossy(body))?;
    Ok(commands)
}

/// Parses each command separately: none can block another, and the answer is not in memory twice.
fn one_by_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Commands, D::Error> {
    struct Each;
    impl<'de> Visitor<'de> for Each {
        type Value = Commands;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of commands")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut waiting: A) -> Result<Commands, A::Error> {
            let (mut all, mut kept) = (Commands::default(), 0);
            while let Some(raw) = waiting.next_element::<&RawValue>()? {
                // Skipped commands are not even parsed.
                if kept >= COMMANDS_KEPT_BYTES {
                    continue;
                }
                match Command::parse(raw) {
                    Some(command) => {
                        kept += raw.get().len().min(COMMAND_MAX_BYTES);
                        all.commands.push(command);
                    }
                    None => all.malformed += 1,
                }
            }
            Ok(all)
        }
    }
    deserializer.deserialize_seq(Each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_malformed_command_does_not_hold_up_the_others() {
        let body = br#"{"commands":[
            {"command_id":"1","command_type":"ping","timestamp":"2026-11-24T00:00:00Z","token":"ey.hunter2"},
            {"command_id":"","command_type":"ping"}, {"command_type":"ping"}, 7,
            {"command_id":"2","command_type":"set","parameters":{"a":1}}]}"#;
        let Commands { commands, malformed } = parse_commands(body).unwrap();
        assert_eq!(malformed, 3);
        assert_eq!(commands.iter().map(|c| c.command_id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(commands[1].parameters["a"], 1);
        assert_eq!(commands[0].token.as_ref().unwrap().expose(), "ey.hunter2");
        assert!(!format!("{commands:?}").contains("hunter2"));
        assert!(parse_commands(b"{}").is_err());
    }

    #[test]
    fn a_command_of_any_size_does_not_hold_up_the_others() {
        let large = |bytes: usize| {
            let filler = "x".repeat(bytes);
            format!(r#"{{"parameters":{{"a":"{filler}"}},"command_id":"{bytes}","command_type":"ping"}}"#)
        };
        let (small, limit, huge) = (large(10), large(COMMAND_MAX_BYTES - 100), large(8 << 20));
        let body = format!(r#"{{"commands":[{huge},{small},{limit},{{"command_id":"é"}},{huge}]}}"#);
        let Commands { commands, malformed } = parse_commands(body.as_bytes()).unwrap();
        let found: Vec<_> = commands.iter().map(|c| (c.command_id.as_str(), c.is_oversized)).collect();
        assert_eq!(found, [("8388608", true), ("10", false), ("130972", false), ("8388608", true)]);
        assert_eq!(malformed, 1);
        assert!(commands[0].parameters.is_null() && commands[1].parameters.is_object());
    }

    #[test]
    fn a_command_with_an_invalid_character_does_not_hold_up_the_others() {
        let mut body = br#"{"commands":[{"command_id":"1","command_type":"\xe4"},{"command_id":"2","command_type":"p"}]}"#.to_vec();
        let escape = body.iter().position(|byte| *byte == b'\\').unwrap();
        body.splice(escape..escape + 4, [0xe4]);
        assert_eq!(parse_commands(&body).unwrap().commands.len(), 2);
    }
}
