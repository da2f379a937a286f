//! `CONTROL_PLANE_DSCP`: how routers are asked to treat outgoing packets.

use std::fmt;
use std::str::FromStr;

/// A differentiated services code point, 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dscp(pub u8);

impl FromStr for Dscp {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let name = s.trim().to_ascii_uppercase();
        let digits = |prefix| name.strip_prefix(prefix).map(str::as_bytes);
        let code = match name.as_str() {
            "BE" | "DF" => Some(0),
            "LE" => Some(1),
            "EF" => Some(46),
            "VA" | "VOICE-ADMIT" => Some(44),
            _ => match (digits("CS"), digits("AF")) {
                (Some([class @ b'0'..=b'7']), _) => Some((class - b'0') * 8),
                (_, Some([class @ b'1'..=b'4', drop @ b'1'..=b'3'])) => {
                    Some((class - b'0') * 8 + (drop - b'0') * 2)
                }
                _ => name.parse().ok().filter(|code| *code < 64),
            },
        };
        code.map(Self).ok_or_else(|| {
            format!("{s:?} is neither a DSCP name (LE, CS1, AF11, EF) nor a number from 0 to 63")
        })
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_code_points() {
        for (text, code) in [
            ("LE", 1),
            ("le", 1),
            ("BE", 0),
            ("CS0", 0),
            ("CS1", 8),
            ("cs7", 56),
            ("AF11", 10),
            ("AF43", 38),
            ("EF", 46),
            ("Voice-Admit", 44),
            ("0", 0),
            (" 63 ", 63),
        ] {
            assert_eq!(text.parse(), Ok(Dscp(code)), "{text}");
        }
        for text in ["", "64", "-1", "CS8", "CS", "AF51", "AF14", "AF1", "AF111", "EF1", "0x08", "256"] {
            assert!(text.parse::<Dscp>().is_err(), "{text}");
        }
    }
}
