//! Quota refresh requests.

use super::Kind;
use super::draft::{Acceptance, Draft};
use super::schema::{Absent, Field, FieldRule, Schema, unless_faulty};

const TRANSACTION: usize = 0;
const SESSION: usize = 1;

/// The product, also used in usage records.
pub(super) const PRODUCT_CODE: Field = Field {
    name: "product_code",
    rule: FieldRule::OneOf(&["speech_transcription", "speech_synthesis", "real_time_streaming"]),
    absent: Absent::Default("\"speech_transcription\""),
};

const SCHEMA: Schema<5> = Schema {
    fields: [
        Field::required("transaction_id", FieldRule::Id),
        Field::required("api_session_id", FieldRule::Id),
        Field::required("customer_id", FieldRule::Id),
        PRODUCT_CODE,
        Field { name: "timestamp", rule: FieldRule::Time, absent: Absent::Now },
    ],
    ours: &[],
};

pub(super) fn draft<'a>(acceptance: &Acceptance, text: &'a str) -> Result<Draft<'a>, String> {
    let found = SCHEMA.find(text).map_err(|error| error.to_string())?;
    let values = unless_faulty(SCHEMA.check(&found, &acceptance.now), Vec::new())?;
    Ok(Draft {
        kind: Kind::Quota,
        session: SCHEMA.required(&found, SESSION)?,
        transaction: SCHEMA.required(&found, TRANSACTION)?,
        correlation: found.correlation,
        traceparent: found.traceparent,
        body: acceptance.forward(&SCHEMA, text, &found, &values, "}")?,
    })
}
