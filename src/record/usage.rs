//! Usage records, for which customers are billed.

use super::draft::{Acceptance, Draft};
use super::schema::{Absent, Field, FieldRule, FieldValues, Schema, unless_faulty};
use super::{Kind, quota, time};

/// The fields that the agent adds; a producer's fields of the same names are dropped.
pub(super) const ENRICHMENT: [&str; 4] =
    ["server_instance_id", "api_server_region", "processing_timestamp", "agent_version"];

const TRANSACTION: usize = 0;
const SESSION: usize = 1;
const REQUESTED: usize = 8;
const RESPONDED: usize = 9;

const SCHEMA: Schema<10> = Schema {
    fields: [
        Field::required("transaction_id", FieldRule::Id),
        Field::required("api_session_id", FieldRule::Id),
        Field::required("customer_id", FieldRule::Id),
        quota::PRODUCT_CODE,
        Field::required("connection_duration_seconds", FieldRule::Number),
        Field::required("data_bytes_processed", FieldRule::Integer(0)),
        Field::required("audio_duration_seconds", FieldRule::Number),
        Field { name: "request_count", rule: FieldRule::Integer(1), absent: Absent::Default("1") },
        Field::required("request_timestamp", FieldRule::Time),
        Field::required("response_timestamp", FieldRule::Time),
    ],
    ours: &ENRICHMENT,
};

/// The fault in the order of the two times, if both are valid times.
fn order_fault(found: &FieldValues<'_, 10>) -> Option<&'static str> {
    let moment = |field: usize| Some(time::moment(found.values[field]?).ok()?.instant);
    let is_wrong = moment(RESPONDED)? < moment(REQUESTED)?;
    is_wrong.then_some("response_timestamp: must not be before request_timestamp")
}

pub(super) fn draft<'a>(acceptance: &Acceptance, text: &'a str) -> Result<Draft<'a>, String> {
    let found = SCHEMA.find(text).map_err(|error| error.to_string())?;
    let order = order_fault(&found).map(str::to_owned);
    let values = unless_faulty(SCHEMA.check(&found, &acceptance.now), order.into_iter().collect())?;
    Ok(Draft {
        kind: Kind::Usage,
        session: SCHEMA.required(&found, SESSION)?,
        transaction: SCHEMA.required(&found, TRANSACTION)?,
        correlation: found.correlation,
        traceparent: found.traceparent,
        body: acceptance.forward(&SCHEMA, text, &found, &values, &acceptance.enrichment)?,
    })
}
