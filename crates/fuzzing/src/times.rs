//! Producers' timestamps.

use chrono::{DateTime, Datelike, NaiveDate};
use serde_json::value::RawValue;

use super::acceptance::{ACCEPTED, acceptor, text};
use super::members::{members, only};
use dataplane_agent::record::{Queue, UnknownFields};

/// From here on a number counts milliseconds.
const MILLISECONDS_FROM: i128 = 100_000_000_000;

const NANOS: i128 = 1_000_000_000;

/// A timestamp: as JSON, and as the text of a JSON string.
pub fn timestamp(data: &[u8]) {
    let Ok(data) = str::from_utf8(data) else { return };
    let quoted = serde_json::Value::from(data).to_string();
    let as_it_stands = serde_json::from_str::<&RawValue>(data).map(RawValue::get);
    for given in as_it_stands.into_iter().chain([quoted.as_str()]) {
        let Some(sent) = sent(given) else {
            assert!(!must_be_accepted(given), "{given} is a time");
            continue;
        };
        same(given, &sent);
        assert_eq!(
            self::sent(&sent).as_ref(),
            Some(&sent),
            "sent for {given}, and not accepted as it stands"
        );
    }
}

/// What is sent for a quota request's timestamp, if it is accepted.
fn sent(given: &str) -> Option<String> {
    let message = format!(
        r#"{{"transaction_id":"t","api_session_id":"s","customer_id":"c","product_code":"speech_synthesis","timestamp":{given}}}"#
    );
    let acceptor = acceptor(UnknownFields::Forward, usize::MAX);
    let record = acceptor.at(ACCEPTED).accept(Queue::Quota, message.as_bytes()).ok()?;
    only(&members(text(record.body())), "timestamp").map(str::to_owned)
}

/// Whether the contract leaves no choice.
fn must_be_accepted(given: &str) -> bool {
    let in_range = |nanos: i128| {
        let time = DateTime::from_timestamp(nanos.div_euclid(NANOS) as i64, 0);
        time.is_some_and(|time| (1..=9999).contains(&time.year()))
    };
    match serde_json::from_str::<String>(given) {
        Ok(text) => parse(&text).is_some_and(|time| in_range(time.nanos)),
        Err(_) => unix(given).is_some_and(in_range),
    }
}

/// The nanoseconds since the epoch that a number says, if it has no exponent.
fn unix(literal: &str) -> Option<i128> {
    let magnitude = literal.trim_start_matches('-');
    let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, "0"));
    let whole: i128 = whole.parse().ok().filter(|whole| *whole < i128::from(i64::MAX))?;
    let places = if whole < MILLISECONDS_FROM { 9 } else { 6 };
    fraction.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    let padded = format!("{fraction:0<9}");
    let nanos = whole * 10i128.pow(places) + padded.get(..places as usize)?.parse::<i128>().ok()?;
    Some(if literal.starts_with('-') { -nanos } else { nanos })
}

/// What is sent for a time is RFC 3339 with a zone, and the same time.
pub(super) fn same(given: &str, sent: &str) {
    let Ok(sent_text) = serde_json::from_str::<String>(sent) else { panic!("{sent} is no string") };
    let Some(time) = parse(&sent_text).filter(|time| time.zone) else { panic!("{sent} is not RFC 3339") };
    let string = serde_json::from_str::<String>(given).ok();
    if let Some(original) = string.as_deref().and_then(parse) {
        assert_eq!(time.nanos, original.nanos, "{given} became {sent}");
        assert!(!original.zone || given == sent, "{given} became {sent}");
        return;
    }
    let literal = string.as_deref().unwrap_or(given);
    if let Some(nanos) = unix(literal) {
        assert_eq!(time.nanos, nanos, "{given} became {sent}");
        return;
    }
    let Ok(number) = literal.parse::<f64>() else { panic!("{given} is no time") };
    let seconds = if number.abs() < MILLISECONDS_FROM as f64 { number } else { number / 1000. };
    // What a double of that size can tell apart, and some.
    assert!((time.nanos as f64 / 1e9 - seconds).abs() < 1e-3, "{given} became {sent}");
}

/// A time as RFC 3339 writes it.
struct Time {
    /// Since the epoch. A leap second is the one after it.
    nanos: i128,
    /// Whether it says its zone; else it is in UTC.
    zone: bool,
}

/// Reads RFC 3339, by its grammar and nothing else; the zone may be missing.
fn parse(text: &str) -> Option<Time> {
    let mut rest = text.as_bytes();
    let year = digits(&mut rest, 4)?;
    one_of(&mut rest, b"-")?;
    let month = digits(&mut rest, 2)?;
    one_of(&mut rest, b"-")?;
    let day = digits(&mut rest, 2)?;
    one_of(&mut rest, b"Tt ")?;
    let hour = digits(&mut rest, 2).filter(|hour| *hour < 24)?;
    one_of(&mut rest, b":")?;
    let minute = digits(&mut rest, 2).filter(|minute| *minute < 60)?;
    one_of(&mut rest, b":")?;
    let second = digits(&mut rest, 2).filter(|second| *second <= 60)?;
    let mut nanos = 0;
    if one_of(&mut rest, b".").is_some() {
        let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (fraction, after) = rest.split_at(len);
        rest = after;
        let digit = |i: usize| fraction.get(i).map_or(0, |digit| i128::from(digit - b'0'));
        nanos = (0..9).fold(0, |nanos, i| nanos * 10 + digit(i));
        (len > 0).then_some(())?;
    }
    let zone = !rest.is_empty();
    let mut offset = 0;
    if zone && one_of(&mut rest, b"Zz").is_none() {
        let sign = if one_of(&mut rest, b"+-")? == b'+' { 1 } else { -1 };
        let hours = digits(&mut rest, 2).filter(|hours| *hours < 24)?;
        one_of(&mut rest, b":")?;
        let minutes = digits(&mut rest, 2).filter(|minutes| *minutes < 60)?;
        offset = sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60);
    }
    rest.is_empty().then_some(())?;
    let midnight = NaiveDate::from_ymd_opt(year as i32, month, day)?.and_hms_opt(0, 0, 0)?.and_utc();
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second) - offset;
    Some(Time { nanos: i128::from(midnight.timestamp() + seconds) * NANOS + nanos, zone })
}

/// The next so many digits.
fn digits(rest: &mut &[u8], len: usize) -> Option<u32> {
    let (digits, after) = rest.split_at_checked(len)?;
    *rest = after;
    digits.iter().try_fold(0, |n, byte| Some(n * 10 + (*byte as char).to_digit(10)?))
}

/// The next byte, if it is one of these.
fn one_of(rest: &mut &[u8], bytes: &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first().filter(|(byte, _)| bytes.contains(byte))?;
    *rest = after;
    Some(byte)
}
