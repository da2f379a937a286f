//! Planted bugs that are injected on the network.

use std::time::Duration;

use dataplane_agent::control_plane::{Failure, WireAnswer, WireRequest};
use dataplane_agent::record::Kind;
use hyper::header::HeaderValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Network;
use crate::bugs::Bug;
use crate::request::{Endpoint, ParsedRequest};
use crate::server::answer;
use crate::world::State;

impl Network {
    pub(super) fn tamper_with_request(state: &mut State, request: &mut WireRequest) {
        let Some(bug) = state.bug else { return };
        let Some(key) = request.headers.get("idempotency-key").cloned() else { return };
        let is_record = request.uri.path().contains("/sessions/") || request.uri.path().ends_with("/batch");
        let is_plain = !request.headers.contains_key("content-encoding");
        let known = state.by_key.get(&Uuid::parse_str(key.to_str().unwrap_or_default()).unwrap_or_default());
        let is_retry = known.is_some_and(|number| state.records[*number].tried > 0);
        match bug {
            Bug::NewKeyOnRetry if is_record && is_retry => {
                request.headers.insert(
                    "idempotency-key",
                    HeaderValue::from_static("0c2d1f6e-0000-4000-8000-000000000000"),
                );
            }
            Bug::NewBodyOnRetry if is_record && is_retry => {
                let text = String::from_utf8_lossy(&request.body).replacen('{', r#"{"again":1,"#, 1);
                request.body = text.into();
            }
            Bug::SendPastTheHead if is_plain && request.uri.path().ends_with("/batch") => {
                if let Ok(mut batch) = serde_json::from_slice::<Value>(&request.body) {
                    for session in batch["sessions"].as_array_mut().into_iter().flatten() {
                        if let Some(records) = session["records"].as_array_mut() {
                            records.reverse();
                        }
                    }
                    request.body = batch.to_string().into();
                }
            }
            _ => {}
        }
    }

    pub(super) fn tamper_with_answer(
        &self,
        asked: &ParsedRequest,
        given: Result<WireAnswer, Failure>,
        is_foreign: bool,
    ) -> Result<WireAnswer, Failure> {
        let state = self.0.state();
        let Some(bug) = state.bug else { return given };
        let Ok(mut answer) = given else { return given };
        match bug {
            Bug::Drop424 | Bug::Count424 if asked.endpoint == Endpoint::Batch && !is_foreign => {
                if let Ok(mut body) = serde_json::from_slice::<Value>(&answer.body)
                    && let Some(exceptions) = body["data"]["exceptions"].as_array_mut()
                {
                    if bug == Bug::Drop424 {
                        exceptions.retain(|exception| exception["status"] != 424);
                    }
                    for exception in exceptions {
                        if exception["status"] == 424 {
                            exception["status"] = 500.into();
                        }
                    }
                    answer.body = body.to_string().into();
                }
            }
            Bug::SettleOnAForeignAnswer if is_foreign => {
                drop(state);
                return Ok(self.taken(asked));
            }
            _ => {}
        }
        Ok(answer)
    }

    /// An answer that takes everything.
    fn taken(&self, asked: &ParsedRequest) -> WireAnswer {
        let mut state = self.0.state();
        match asked.endpoint {
            Endpoint::Batch => {
                let data = json!({"batch": asked.key, "count": asked.records.len(), "exceptions": []});
                answer(200, json!({"success": true, "data": data}).to_string())
            }
            Endpoint::Record(Kind::Quota) => state.quota(asked.records[0]),
            _ => answer(204, ""),
        }
    }

    /// Counts the request as answered while it is still in transit.
    pub(super) async fn as_if_taken(
        &self,
        asked: ParsedRequest,
        there: Duration,
        is_cut: bool,
    ) -> Result<WireAnswer, Failure> {
        let (world, sent) = (self.0.clone(), asked.clone());
        tokio::spawn(async move {
            tokio::time::sleep(there).await;
            if !is_cut {
                world.state().answer(&sent);
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(self.taken(&asked))
    }
}
