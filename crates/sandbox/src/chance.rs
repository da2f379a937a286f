//! Validated values of the weather: a probability, an HTTP status, a table of both.

use std::{collections::BTreeMap, fmt, str::FromStr};

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// Why a value is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Not a number from 0 to 1.
    #[error("a probability is a number from 0 to 1")]
    Probability,
    /// Not the status of a final answer.
    #[error("a status is a number from 200 to 599")]
    Status,
    /// Not a table of statuses.
    #[error("statuses and their probabilities are written like 500=0.1,429=0.05")]
    StatusChances,
}

/// A probability from 0 (never, the default) to 1 (always).
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Probability(f64);

impl Probability {
    /// One half.
    pub(super) const EVEN: Self = Self(0.5);
}

impl TryFrom<f64> for Probability {
    type Error = BadValue;

    fn try_from(value: f64) -> Result<Self, BadValue> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(BadValue::Probability) }
    }
}

impl From<Probability> for f64 {
    fn from(probability: Probability) -> Self {
        probability.0
    }
}

impl FromStr for Probability {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        text.trim().parse().map_err(|_| BadValue::Probability).and_then(|value: f64| value.try_into())
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The status of a final HTTP answer: 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Status(StatusCode);

impl Status {
    /// The default status of a failure.
    pub const INTERNAL_SERVER_ERROR: Self = Self(StatusCode::INTERNAL_SERVER_ERROR);

    /// Converts to the type that answers are built with.
    pub fn code(self) -> StatusCode {
        self.0
    }
}

impl TryFrom<u16> for Status {
    type Error = BadValue;

    fn try_from(number: u16) -> Result<Self, BadValue> {
        match StatusCode::from_u16(number) {
            Ok(code) if (200..600).contains(&number) => Ok(Self(code)),
            _ => Err(BadValue::Status),
        }
    }
}

impl From<Status> for u16 {
    fn from(status: Status) -> Self {
        status.0.as_u16()
    }
}

impl FromStr for Status {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        text.trim().parse().map_err(|_| BadValue::Status).and_then(|number: u16| number.try_into())
    }
}

/// The probabilities of some statuses. The rest, up to 1, is an ordinary answer.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct StatusChances(BTreeMap<Status, Probability>);

impl StatusChances {
    /// The sum of all probabilities.
    pub fn sum(&self) -> f64 {
        self.0.values().map(|chance| chance.0).sum()
    }

    /// The status at `point` if the probabilities are laid end to end, from 0 to [`sum`](Self::sum).
    pub fn at(&self, point: f64) -> Option<Status> {
        let mut end = 0.0;
        self.0.iter().find_map(|(&status, chance)| {
            end += chance.0;
            (point < end).then_some(status)
        })
    }
}

impl FromStr for StatusChances {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let pair = |pair: &str| {
            let (status, chance) = pair.split_once('=').ok_or(BadValue::StatusChances)?;
            Ok((status.parse()?, chance.parse()?))
        };
        text.split(',').filter(|pair| !pair.trim().is_empty()).map(pair).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for StatusChances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (status, chance)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{}={chance}", u16::from(*status))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_their_range_are_refused() {
        for text in ["-0.1", "1.1", "NaN", "inf", "", "x"] {
            assert_eq!(text.parse::<Probability>(), Err(BadValue::Probability), "{text}");
        }
        for text in ["100", "199", "600", "-1", "x"] {
            assert_eq!(text.parse::<Status>(), Err(BadValue::Status), "{text}");
        }
        assert_eq!("500".parse::<StatusChances>(), Err(BadValue::StatusChances));
        assert!(serde_json::from_str::<StatusChances>(r#"{"500":2}"#).is_err());
        assert!(serde_json::from_str::<StatusChances>(r#"{"99":0.5}"#).is_err());
    }

    #[test]
    fn chances_read_the_same_from_a_flag_and_from_json_and_are_laid_end_to_end() {
        let chances: StatusChances = "500=0.25,404=0.5".parse().unwrap();
        assert_eq!(chances, serde_json::from_str(r#"{"500":0.25,"404":0.5}"#).unwrap());
        assert_eq!(chances.to_string().parse(), Ok(chances.clone()));
        let at = |point| chances.at(point).map(u16::from);
        assert_eq!(
            (at(0.0), at(0.49), at(0.5), at(0.74), at(0.75)),
            (Some(404), Some(404), Some(500), Some(500), None)
        );
    }
}
