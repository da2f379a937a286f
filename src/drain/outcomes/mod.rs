//! Acts on answers: settles records, makes dead letters or retries, and informs the link.

mod batch;
mod batch_results;
mod confirmation;
mod failures;
mod record;
mod refusals;
mod reports;
mod settling;
mod words;

use std::time::Duration;

use tokio::time::Instant;

use super::queues::items;
use super::routes::Pause;
use super::{CompletedRequest, DrainLoop, Form};
use crate::control_plane::Encoding;
use words::heard;

pub(super) use confirmation::Confirmation;
pub(super) use settling::RetryReason;

/// Pause between probes of a braked type while they are sent without backoff.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// Pause between the steps of a walk: this many times the duration of half a step, up to a maximum.
const STEPS_APART: u32 = 20;
const STEP_PAUSE_MOST: Duration = Duration::from_secs(5);

impl DrainLoop {
    /// Handles a completed request.
    pub(super) fn answered(&mut self, sent: CompletedRequest) {
        let now = Instant::now();
        if let Some(heard) = heard(&sent.answer) {
            self.heard = heard;
        }
        let CompletedRequest { parcel, form, flight, probes, answer } = sent;
        let elapsed = answer.elapsed;
        let is_known_refused = items(&parcel).next().is_some_and(|item| item.history.is_confirmed());
        let refusals = probes.map(|log| self.routes.refusals(log));
        self.link.landed(flight);
        if let Some(accepts) = answer.result.as_ref().ok().and_then(|response| response.accepts) {
            self.batching.encodings.heard(accepts);
        }
        match form {
            Form::Batch { encoding, key } => self.batch_answered(parcel, encoding, key, flight, &answer, now),
            Form::Single => {
                for group in parcel {
                    for item in group.items {
                        self.record_answered(group.lane, item, Encoding::Identity, flight, &answer, now);
                    }
                }
            }
        }
        if let Some(log) = probes {
            let is_refusal = refusals != Some(self.routes.refusals(log));
            let pause = self.probe_pause(elapsed, is_refusal, is_known_refused);
            self.routes.probe_answered(log, pause, now);
        }
        // Not every answer shows the state of the link; after one that does not, another probe may be sent.
        if self.sending.is_empty() {
            self.link.undecided(now);
        }
    }

    /// How long to wait after a probe. Steps of a walk are far apart. This makes it unlikely that a ControlPlane recovers
    /// between the two halves of a step, and gets the second record first.
    fn probe_pause(&self, elapsed: Duration, is_refusal: bool, is_known_refused: bool) -> Pause {
        if self.lanes.is_mid_step() {
            Pause::AtOnce
        } else if !is_refusal {
            // Only a refusal says something about the record: otherwise the link may be down.
            Pause::Backoff
        } else if self.lanes.is_walking() {
            Pause::Short((elapsed * STEPS_APART).clamp(PROBE_PAUSE, STEP_PAUSE_MOST))
        } else if is_known_refused {
            Pause::Backoff
        } else {
            Pause::Short(PROBE_PAUSE)
        }
    }
}
