//! Timestamps: our own, and those in producers' messages.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, SecondsFormat, Utc};

use super::json::Token;
use super::number::{self, Decimal};

/// Unix times from here on are in milliseconds: in seconds this would be the year 5138.
const MILLISECONDS_FROM: i128 = 100_000_000_000;

const NANOS: i128 = 1_000_000_000;

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time this many microseconds after the Unix epoch.
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// RFC 3339 in UTC, with microseconds: `2026-01-31T23:59:59.000001Z`. A time outside the years 1 to 9999, which RFC
    /// 3339 cannot express, becomes the nearest one inside.
    pub fn to_rfc3339(self) -> String {
        const FIRST: i64 = -62_135_596_800_000_000;
        const LAST: i64 = 253_402_300_799_999_999;
        let time = DateTime::from_timestamp_micros(self.0.clamp(FIRST, LAST)).unwrap_or_default();
        time.to_rfc3339_opts(SecondsFormat::Micros, true)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = |span: std::time::Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self(micros(since)),
            Err(before) => Self(-micros(before.duration())),
        }
    }
}

/// A producer's timestamp.
pub(super) struct ProducerTime<'a> {
    /// The time, with nanoseconds.
    pub(super) instant: DateTime<Utc>,
    /// The JSON to send: RFC 3339 with a zone.
    pub(super) sent: Cow<'a, str>,
}

/// Parses a producer's timestamp; otherwise returns what was found.
pub(super) fn moment(token: Token<'_>) -> Result<ProducerTime<'_>, &'static str> {
    if token.raw.starts_with('"') {
        let text = token.string()?;
        if let Some(instant) = parse_rfc3339(&text) {
            return Ok(ProducerTime { instant: in_range(Some(instant))?, sent: Cow::Borrowed(token.raw) });
        }
        if let Some(instant) = parse_rfc3339(&format!("{text}Z")) {
            let sent = Cow::Owned(format!("{}Z\"", &token.raw[..token.raw.len() - 1]));
            return Ok(ProducerTime { instant: in_range(Some(instant))?, sent });
        }
    }
    let literal = number::literal(token).map_err(|found| match found {
        "a string that is not a number" => "a string that is not a time",
        found => found,
    })?;
    let instant = in_range(unix(&Decimal::of(&literal)))?;
    // With microseconds, unless that would lose digits: a response could then precede its request.
    let whole_micros = instant.timestamp_subsec_nanos().is_multiple_of(1000);
    let precision = if whole_micros { SecondsFormat::Micros } else { SecondsFormat::Nanos };
    Ok(ProducerTime {
        instant,
        sent: Cow::Owned(format!("\"{}\"", instant.to_rfc3339_opts(precision, true))),
    })
}

fn parse_rfc3339(text: &str) -> Option<DateTime<Utc>> {
    // chrono accepts the mathematical minus sign as a hyphen; RFC 3339 does not.
    if !text.is_ascii() {
        return None;
    }
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
}

fn unix(number: &Decimal) -> Option<DateTime<Utc>> {
    let as_seconds = number.scaled(9)?;
    let nanos = if as_seconds.abs() >= MILLISECONDS_FROM * NANOS { number.scaled(6)? } else { as_seconds };
    let seconds = i64::try_from(nanos.div_euclid(NANOS)).ok()?;
    DateTime::from_timestamp(seconds, nanos.rem_euclid(NANOS) as u32)
}

fn in_range(instant: Option<DateTime<Utc>>) -> Result<DateTime<Utc>, &'static str> {
    instant.filter(|instant| (1..=9999).contains(&instant.year())).ok_or("a time outside the years 1 to 9999")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Result<(DateTime<Utc>, String), &'static str> {
        let token = Token { raw, at: 0, escaped: raw.contains('\\') };
        moment(token).map(|moment| (moment.instant, moment.sent.into_owned()))
    }

    fn sent(raw: &str) -> String {
        read(raw).unwrap_or_else(|found| panic!("{raw}: {found}")).1
    }

    #[test]
    fn rfc3339_with_a_zone_stays_as_it_is() {
        for raw in [
            r#""2026-11-24T12:00:00Z""#,
            r#""2026-11-24t12:00:00z""#,
            r#""2026-11-24 12:00:00+05:30""#,
            r#""2026-11-24T12:00:00-00:00""#,
            r#""2026-11-24T12:00:00.123456789012345678901Z""#,
            r#""2016-12-31T23:59:60Z""#,
            r#""2026-11-24T12:00:00\u002e5Z""#,
            r#""0001-01-01T00:00:00Z""#,
            r#""9999-12-31T23:59:59.999999999Z""#,
        ] {
            assert_eq!(sent(raw), raw);
        }
    }

    #[test]
    fn other_accepted_forms_become_rfc3339_with_a_zone() {
        for (raw, expected) in [
            (r#""2026-11-24T12:00:00""#, r#""2026-11-24T12:00:00Z""#),
            (r#""2026-11-24 12:00:00.5""#, r#""2026-11-24 12:00:00.5Z""#),
            ("0", r#""1970-01-01T00:00:00.000000Z""#),
            ("-1", r#""1969-12-31T23:59:59.000000Z""#),
            ("-0.5", r#""1969-12-31T23:59:59.500000Z""#),
            ("1700000000.1234567", r#""2023-11-14T22:13:20.123456700Z""#),
            ("1700000000.12345678901", r#""2023-11-14T22:13:20.123456789Z""#),
            ("-0.0000005", r#""1969-12-31T23:59:59.999999500Z""#),
            ("1.7e9", r#""2023-11-14T22:13:20.000000Z""#),
            ("\"1700000000\"", r#""2023-11-14T22:13:20.000000Z""#),
            ("99999999999", r#""5138-11-16T09:46:39.000000Z""#),
            ("100000000000", r#""1973-03-03T09:46:40.000000Z""#),
            ("-100000000000", r#""1966-10-31T14:13:20.000000Z""#),
            ("1700000000123.5", r#""2023-11-14T22:13:20.123500Z""#),
            ("253402300799999", r#""9999-12-31T23:59:59.999000Z""#),
        ] {
            assert_eq!(sent(raw), expected, "{raw}");
        }
    }

    #[test]
    fn a_value_that_is_not_a_time_is_named() {
        for (raw, found) in [
            (r#""""#, "a string that is not a time"),
            (r#""yesterday""#, "a string that is not a time"),
            (r#""2026-11-24""#, "a string that is not a time"),
            (r#""2026-11-24T12:00Z""#, "a string that is not a time"),
            (r#""2026-02-30T12:00:00Z""#, "a string that is not a time"),
            (r#""2026-11-24T24:00:00Z""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:61Z""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:00.Z""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:00+0530""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:00+24:00""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:00−05:00""#, "a string that is not a time"),
            (r#"" 2026-11-24T12:00:00Z""#, "a string that is not a time"),
            (r#""2026-11-24T12:00:00ZZ""#, "a string that is not a time"),
            (r#""0000-01-01T00:00:00Z""#, "a time outside the years 1 to 9999"),
            (r#""0001-01-01T00:00:00+01:00""#, "a time outside the years 1 to 9999"),
            (r#""9999-12-31T23:59:59-00:01""#, "a time outside the years 1 to 9999"),
            ("253402300800000", "a time outside the years 1 to 9999"),
            ("-62135596800001", "a time outside the years 1 to 9999"),
            ("1e999999999999999999999", "a time outside the years 1 to 9999"),
            ("true", "a boolean"),
            ("null", "null"),
            ("{}", "an object"),
        ] {
            assert_eq!(read(raw), Err(found), "{raw}");
        }
    }

    #[test]
    fn instants_compare_across_zones_forms_and_leap_seconds() {
        let in_order = [
            r#""2016-12-31T23:59:59.999999999Z""#,
            r#""2017-01-01T00:59:60+01:00""#,
            r#""2016-12-31T23:59:60.000000001Z""#,
            "1483228800",
            r#""2017-01-01T00:00:00.000000001""#,
            "1483228800.00000001",
            "1483228800001",
        ];
        let instants = in_order.map(|raw| read(raw).unwrap().0);
        assert!(instants.is_sorted_by(|a, b| a < b), "{instants:?}");
        assert_eq!(read("1483228800").unwrap().0, read(r#""2016-12-31T16:00:00-08:00""#).unwrap().0);
    }

    #[test]
    fn our_own_timestamps_are_written_to_the_microsecond_and_never_fail() {
        assert_eq!(Timestamp::from_unix_micros(1).to_rfc3339(), "1970-01-01T00:00:00.000001Z");
        assert_eq!(Timestamp(-1).to_rfc3339(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp(i64::MAX).to_rfc3339(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp(i64::MIN).to_rfc3339(), "0001-01-01T00:00:00.000000Z");
        let second = std::time::Duration::from_secs(1);
        assert_eq!(Timestamp::from(UNIX_EPOCH + second), Timestamp(1_000_000));
        assert_eq!(Timestamp::from(UNIX_EPOCH - second), Timestamp(-1_000_000));
    }
}
