//! Quota refresh requests.

use super::Kind;
use super::accept::{Acceptance, Draft};
use super::schema::{Absent, Field, Rule, Schema};
use super::time::{self, Timestamp};

const TRANSACTION: usize = 0;
const SESSION: usize = 1;
const TIMESTAMP: usize = 4;

/// A stamp this long before the acceptance is that of a clock without a date, as a machine has that was just switched on:
/// nothing waits in Redis for a month.
const NO_DATE_MICROS: i64 = 30 * 24 * 3600 * 1_000_000;

/// What the customer uses; the same in usage records.
pub(super) const PRODUCT_CODE: Field = Field {
    name: "product_code",
    rule: Rule::OneOf(&["speech_transcription", "speech_synthesis", "real_time_streaming"]),
    absent: Absent::Default("\"speech_transcription\""),
};

const SCHEMA: Schema<5> = Schema {
    fields: [
        Field::required("transaction_id", Rule::Id),
        Field::required("api_session_id", Rule::Id),
        Field::required("customer_id", Rule::Id),
        PRODUCT_CODE,
        Field { name: "timestamp", rule: Rule::Time, absent: Absent::Now },
    ],
    ours: &[],
};

pub(super) fn draft<'a>(acceptance: &Acceptance<'_>, text: &'a str) -> Result<Draft<'a>, String> {
    let found = SCHEMA.find(text).map_err(|error| error.to_string())?;
    let values = SCHEMA.check(&found, &acceptance.now)?;
    Ok(Draft {
        kind: Kind::Quota,
        session: SCHEMA.required(&found, SESSION)?,
        transaction: SCHEMA.required(&found, TRANSACTION)?,
        correlation: found.correlation,
        traceparent: found.traceparent,
        body: acceptance.forward(&SCHEMA, text, &found, &values, "}")?,
    })
}

/// Since when a request waits: since its timestamp, if that can be true, or else since it was accepted.
///
/// A producer's clock that is ahead counts as now. One that is behind by minutes or days cannot be told from a request that
/// waited in Redis: the request is as old as it says.
pub(super) fn waits_since(body: &[u8], accepted_at: Timestamp) -> Timestamp {
    let stamped = || {
        let text = std::str::from_utf8(body).ok()?;
        let found = SCHEMA.find(text).ok()?;
        let moment = time::moment(SCHEMA.required(&found, TIMESTAMP).ok()?).ok()?;
        Some(Timestamp(moment.instant.timestamp_micros()))
    };
    let may_be = |stamp: &Timestamp| {
        let before = accepted_at.0.saturating_sub(stamp.0);
        (0..NO_DATE_MICROS).contains(&before)
    };
    stamped().filter(may_be).unwrap_or(accepted_at)
}
