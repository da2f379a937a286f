//! The weather between the agent and this `ControlPlane`: which faults occur, how often, and how to change them.

use axum::http::{HeaderValue, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64;

use super::chance::{Probability, Status, StatusChances};
use super::encoding::Encoding;

/// The faults and their probabilities. By default there are none: everything is answered at once, and correctly.
///
/// A request meets, in this order: `latency_ms`, `hang`, `reset`, `always`, `capacity`, `success_false`, `status`,
/// `refuse_encodings`, and then its records' own fate (`unknown_sessions`, `refuse_transactions`,
/// `poison_transactions`, `refuse_chance`, `partial_batch`). If one of them decides the answer, nothing is processed. A
/// processed request may still meet `foreign_batch`, `lost_answer` or `bad_body`.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Fault injection")]
pub struct Weather {
    /// Delay of every answer in milliseconds, before anything is processed
    #[arg(long, default_value_t, value_name = "MS")]
    pub latency_ms: u64,
    /// Random additional delay in milliseconds, up to this
    #[arg(long, default_value_t, value_name = "MS")]
    pub jitter_ms: u64,
    /// Close the port and every connection, as if the process were down
    #[arg(long, requires = "control_listen")]
    pub down: bool,
    /// Probability that a request is read and never answered
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub hang: Probability,
    /// Probability that a connection is closed without an answer and nothing is processed
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub reset: Probability,
    /// Probability that a request is processed and its connection closed without an answer
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub lost_answer: Probability,
    /// Statuses to answer instead, with their probabilities, like 500=0.1,429=0.05
    #[arg(long, default_value_t, value_name = "STATUS=PROBABILITY,…")]
    pub status: StatusChances,
    /// `Retry-After` of every 429 and 503: seconds or an HTTP date
    #[arg(long, value_parser = header_text, value_name = "SECONDS|DATE")]
    #[serde(deserialize_with = "header_value")]
    pub retry_after: Option<String>,
    /// Prefixes of transaction ids that are always refused
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,…")]
    #[serde(deserialize_with = "one_or_many")]
    pub refuse_transactions: Vec<String>,
    /// Statuses for those; each transaction always gets the same one [default: 422]
    #[arg(long, value_delimiter = ',', value_name = "STATUS,…")]
    pub refuse_with: Vec<Status>,
    /// Probability that any record is refused, as by one of two backends; uses --refuse-with
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub refuse_chance: Probability,
    /// Probability that a batch with a record to be refused is refused as a whole, or one hit by --refuse-chance
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub refuse_batch: Probability,
    /// Prefixes of transaction ids that are always answered 500
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,…")]
    #[serde(deserialize_with = "one_or_many")]
    pub poison_transactions: Vec<String>,
    /// Prefixes of session ids that are always answered 404
    #[arg(long, value_delimiter = ',', value_name = "PREFIX,…")]
    #[serde(deserialize_with = "one_or_many")]
    pub unknown_sessions: Vec<String>,
    /// One status to answer everything with
    #[arg(long)]
    pub always: Option<Status>,
    /// `Location` of every 3xx
    #[arg(long, value_parser = header_text, value_name = "URL")]
    #[serde(deserialize_with = "header_value")]
    pub location: Option<String>,
    /// Probability, for each record of a batch, that it fails alone. Its status is drawn from --status (500 if that is
    /// empty), which then no longer applies to whole batches
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub partial_batch: Probability,
    /// Probability, for each record of a batch that is not accepted, that later records of its session are accepted although
    /// they should be answered 424
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub break_batch_order: Probability,
    /// Probability that a batch is processed and its answer has another `batch` or `count`
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub foreign_batch: Probability,
    /// Probability of a 200 with `"success": false` and nothing processed
    #[arg(long, default_value_t, value_name = "PROBABILITY")]
    pub success_false: Probability,
    /// Body of a 2xx answer instead of the right one; with --always, body of every answer
    #[arg(long)]
    pub bad_body: Option<BadBody>,
    /// Probability of such a body [default: 1]
    #[arg(long, value_name = "PROBABILITY")]
    pub bad_body_chance: Option<Probability>,
    /// Requests per second above which 429 is answered; 0: no limit
    #[arg(long, default_value_t, value_name = "REQUESTS")]
    pub capacity: u32,
    /// Content encodings of requests that are answered 415
    #[arg(long, value_delimiter = ',', value_name = "ENCODING,…")]
    pub refuse_encodings: Vec<Encoding>,
    /// Do not list the accepted encodings in answers (`Accept-Encoding`)
    #[arg(long)]
    pub hide_encodings: bool,
    /// `Content-Encoding` of every answer, accepted or not: gzip, zstd, or any name, which is then only claimed
    #[arg(long, value_parser = header_text, value_name = "ENCODING")]
    #[serde(deserialize_with = "header_value")]
    pub answer_encoding: Option<String>,
}

/// A body that no client should trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum BadBody {
    /// Nothing.
    Empty,
    /// A page of HTML.
    NotJson,
    /// One JSON object of 256 MiB.
    Huge,
    /// A body that never ends.
    Endless,
}

impl Weather {
    /// The status for a refused transaction, always the same.
    pub(super) fn refusal(&self, transaction: &str) -> StatusCode {
        let of = xxh3_64(transaction.as_bytes()) as usize;
        let status = of.checked_rem(self.refuse_with.len()).and_then(|at| self.refuse_with.get(at));
        status.map_or(StatusCode::UNPROCESSABLE_ENTITY, |status| status.code())
    }

    /// This weather with some fields replaced, or all problems, each with its field.
    pub fn patched(&self, patch: Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut fields = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            other => return Err(vec![format!("the weather cannot be written as JSON: {other:?}")]),
        };
        let mut patched = self.clone();
        let mut problems = Vec::new();
        // One field at a time: serde stops at the first problem without naming its field.
        for (name, value) in patch {
            if !fields.contains_key(&name) {
                problems.push(format!("{name}: unknown field"));
                continue;
            }
            let before = fields.insert(name.clone(), value);
            match serde_json::from_value(Value::Object(fields.clone())) {
                Ok(weather) => patched = weather,
                Err(problem) => {
                    problems.push(format!("{name}: {problem}"));
                    fields.extend(before.map(|value| (name, value)));
                }
            }
        }
        problems.extend(patched.problem());
        if problems.is_empty() { Ok(patched) } else { Err(problems) }
    }

    /// What is wrong with the combination of fields.
    pub fn problem(&self) -> Option<String> {
        // Ten times 0.1 is slightly more than 1.
        let too_much = self.status.sum() > 1.0 + 1e-9;
        too_much.then(|| "status: the probabilities add up to more than 1".to_owned())
    }
}

/// A valid header value.
fn header_text(text: &str) -> Result<String, &'static str> {
    match HeaderValue::from_str(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("this cannot be the value of a header"),
    }
}

fn header_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a whole number")]
    enum Value {
        Number(u64),
        Text(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(Value::Text(text)) => header_text(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Texts {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![text],
        Texts::Many(texts) => texts,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(value: Value) -> Result<Weather, Vec<String>> {
        let Value::Object(fields) = value else { panic!("not an object") };
        Weather { latency_ms: 7, ..Weather::default() }.patched(fields)
    }

    #[test]
    fn a_patch_replaces_the_fields_it_names_and_no_other() {
        let weather =
            patch(json!({"hang": 0.5, "retry_after": 3, "unknown_sessions": "s-", "status": {"500": 0.1}}));
        let expected = Weather {
            latency_ms: 7,
            hang: "0.5".parse().unwrap(),
            retry_after: Some("3".to_owned()),
            unknown_sessions: vec!["s-".to_owned()],
            status: "500=0.1".parse().unwrap(),
            ..Weather::default()
        };
        assert_eq!(weather, Ok(expected));
    }

    #[test]
    fn every_problem_is_reported_by_its_field() {
        let problems = patch(json!({"rain": 1, "snow": 1, "hang": 2, "always": 700, "retry_after": "a\nb"}))
            .unwrap_err();
        for field in ["rain: unknown field", "snow: unknown field", "hang: ", "always: ", "retry_after: "] {
            assert_eq!(
                problems.iter().filter(|problem| problem.starts_with(field)).count(),
                1,
                "{field} {problems:?}"
            );
        }
        let problems = patch(json!({"status": {"500": 0.6, "429": 0.6}})).unwrap_err();
        assert_eq!(problems, ["status: the probabilities add up to more than 1"]);
    }
}
