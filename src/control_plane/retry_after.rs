//! Parses how long an answer asks us to wait.

use std::time::{Duration, SystemTime};

/// The longest delay respected: a longer one is a mistake that must not silence an edge for a day.
const LONGEST: Duration = Duration::from_hours(1);

/// Parses `Retry-After` in both forms: seconds or a date. A past date gives zero, an invalid value `None`.
///
/// A date is compared with the answer's own `Date` if present: an edge's clock may be wrong, but the difference between two
/// readings of the peer's clock is not.
pub(crate) fn retry_after(value: &str, date: Option<SystemTime>, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let digits = value.strip_prefix('-').unwrap_or(value);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        if digits.len() < value.len() {
            return Some(Duration::ZERO);
        }
        // A number that overflows is still a number, and a large one.
        return Some(digits.parse().map_or(LONGEST, Duration::from_secs).min(LONGEST));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or_default().min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nonsense_is_not() {
        let now = httpdate::parse_http_date("Tue, 24 Nov 2026 12:00:00 GMT").unwrap();
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("007", Some(7)),
            ("-5", Some(0)),
            ("3600", Some(3_600)),
            ("3601", Some(3_600)),
            ("99999999999999999999999999", Some(3_600)),
            ("Tue, 24 Nov 2026 12:00:30 GMT", Some(30)),
            ("Tuesday, 24-Nov-26 12:00:30 GMT", Some(30)),
            ("Tue Nov 24 12:00:30 2026", Some(30)),
            ("Tue, 24 Nov 2026 11:00:00 GMT", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(3_600)),
            ("", None),
            ("-", None),
            ("1.5", None),
            ("+5", None),
            ("5s", None),
            ("soon", None),
            ("2026-11-24T12:00:30Z", None),
            ("Tue, 24 Nov 2026 25:00:00 GMT", None),
        ];
        for (value, seconds) in table {
            assert_eq!(retry_after(value, None, now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn a_date_is_counted_from_the_peers_own_clock() {
        let peer = httpdate::parse_http_date("Tue, 24 Nov 2026 12:00:00 GMT").unwrap();
        let ours_is_an_hour_fast = peer + Duration::from_hours(1);
        let value = "Tue, 24 Nov 2026 12:00:30 GMT";
        assert_eq!(retry_after(value, Some(peer), ours_is_an_hour_fast), Some(Duration::from_secs(30)));
        assert_eq!(retry_after(value, None, ours_is_an_hour_fast), Some(Duration::ZERO));
    }
}
