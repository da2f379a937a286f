//! Records what was sent, how often, and whether the server took it.

use serde::Serialize;
use uuid::Uuid;

use super::wire::Exchange;
use crate::control_plane::Meaning;
use crate::record::{Kind, Record};

/// A record that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SentRecord {
    /// Its kind.
    pub kind: Kind,
    /// Its session.
    pub api_session_id: String,
    /// Its transaction.
    pub transaction_id: String,
    /// Its key.
    pub idempotency_key: Uuid,
    /// The number of requests that contained it.
    pub sent: u32,
}

/// What happened to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RecordState {
    /// The server says that it did not take it.
    NotTaken,
    /// Not known.
    Unknown,
    /// The server says that it has it.
    Settled,
}

impl RecordState {
    pub(super) fn of(exchange: &Exchange) -> Self {
        match exchange.meaning() {
            Some(Meaning::Delivered | Meaning::Duplicate) => Self::Settled,
            Some(
                Meaning::Refused
                | Meaning::NotFound
                | Meaning::Credentials
                | Meaning::Misconfigured
                | Meaning::Overloaded,
            ) => Self::NotTaken,
            Some(Meaning::InProgress | Meaning::Failing | Meaning::Foreign | Meaning::Mismatched) | None => {
                Self::Unknown
            }
        }
    }
}

/// Everything that was sent.
#[derive(Default)]
pub(super) struct SentRecords(Vec<(SentRecord, RecordState)>);

impl SentRecords {
    /// Notes that a record was sent, and its state. A settled record stays settled.
    pub(super) fn note(&mut self, record: &Record, state: RecordState) {
        let key = record.key();
        if let Some((sent, known)) = self.0.iter_mut().find(|(sent, _)| sent.idempotency_key == key) {
            sent.sent += 1;
            *known = state.max(*known);
            return;
        }
        let sent = SentRecord {
            kind: record.kind(),
            api_session_id: record.session().to_owned(),
            transaction_id: record.transaction().to_owned(),
            idempotency_key: key,
            sent: 1,
        };
        self.0.push((sent, state));
    }

    /// The records that the server must have, once each.
    pub(super) fn settled(&self) -> Vec<SentRecord> {
        self.0
            .iter()
            .filter(|(_, state)| *state == RecordState::Settled)
            .map(|(sent, _)| sent.clone())
            .collect()
    }

    /// How many records of a kind the server must have, and how many more it may have.
    pub(super) fn count(&self, kind: Kind) -> (u64, u64) {
        let of = |wanted| {
            self.0.iter().filter(|(sent, state)| sent.kind == kind && *state == wanted).count() as u64
        };
        (of(RecordState::Settled), of(RecordState::Unknown))
    }
}
