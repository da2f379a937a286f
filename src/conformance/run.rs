//! The state of a run, and the requests that rules share.

use super::accounts::{Accounts, Processed};
use super::answers::delivered;
use super::ledger::{RecordState, SentRecords};
use super::rule::{NotPassed, fail};
use super::samples::{SampleBatch, Samples};
use super::servers::WaitingCommand;
use super::wire::{ApiClients, Caller, Exchange};
use super::{Setup, Unable};
use crate::control_plane::{
    self, BatchException, Capabilities, Client, ConnectionChoice, Delivery, Encoding, Meaning, Registration,
    parse_batch_answer,
};
use crate::record::{Enrichment, Kind, Record};

/// A run in progress.
pub(super) struct Run {
    pub(super) setup: Setup,
    pub(super) wire: ApiClients,
    pub(super) samples: Samples,
    pub(super) ledger: SentRecords,
    pub(super) accounts: Option<Accounts>,
    /// What the server had counted before the run.
    pub(super) before: Processed,
    /// The run's id.
    pub(super) id: String,
    /// The session that most records belong to.
    pub(super) session: String,
    /// The answer to the first batch.
    pub(super) batch: Option<BatchAnswer>,
    /// The answer to the batch with bodies that must be refused.
    pub(super) mixed: Option<BatchAnswer>,
    /// Whether an answer's `Accept-Encoding` listed zstd.
    pub(super) accepts_zstd: bool,
    /// A command that the server delivered.
    pub(super) command: Option<WaitingCommand>,
}

impl Run {
    pub(super) async fn begin(setup: Setup, run: &str) -> Result<Self, Unable> {
        let wire = ApiClients::new(setup.client.clone(), run, setup.burst)?;
        let enrichment = Enrichment {
            server_id: setup.client.server_id.clone(),
            region: setup.region.clone(),
            version: setup.client.version.clone(),
        };
        let samples = Samples::new(run, &setup.customer, &enrichment);
        let accounts = setup.accounts.clone().map(Accounts::at).transpose()?;
        let before = match &accounts {
            Some(accounts) => accounts.processed().await.map_err(|reason| accounts.unable(reason))?,
            None => Processed::default(),
        };
        Ok(Self {
            id: run.to_owned(),
            session: samples.session("main"),
            setup,
            wire,
            samples,
            ledger: SentRecords::default(),
            accounts,
            before,
            batch: None,
            mixed: None,
            accepts_zstd: false,
            command: None,
        })
    }

    pub(super) fn registration(&self) -> Registration {
        Registration {
            region: self.setup.region.clone(),
            ip_address: self.setup.host.clone(),
            port: self.setup.port,
            capabilities: Capabilities {
                max_concurrent_sessions: 1,
                supported_products: "speech_transcription".to_owned(),
                supported_languages: "*".to_owned(),
            },
        }
    }

    /// Sends one record.
    pub(super) async fn deliver(&mut self, record: &Record) -> Exchange {
        self.deliver_by(Caller::Agent, record).await
    }

    /// Sends a record that must be accepted as a new one.
    pub(super) async fn deliver_new(&mut self, record: &Record) -> Result<Exchange, NotPassed> {
        delivered(self.deliver(record).await)
    }

    pub(super) async fn deliver_by(&mut self, by: Caller, record: &Record) -> Exchange {
        let correlation_id = record.correlation_id();
        let deliver = async |client: &Client| drop(client.deliver(delivery(record, &correlation_id)).await);
        let exchange = self.wire.send(by, in_words(record), deliver).await;
        self.ledger.note(record, RecordState::of(&exchange));
        exchange
    }

    /// Sends a batch.
    pub(super) async fn deliver_batch(&mut self, batch: &SampleBatch, encoding: Encoding) -> BatchAnswer {
        let (key, records, body) = (batch.key(), batch.parts().len(), batch.body(encoding));
        let correlation_id = key.to_string();
        let deliver = async |client: &Client| {
            let batch = control_plane::BatchRequest {
                body: body.clone(),
                encoding,
                records,
                key,
                correlation_id: &correlation_id,
                connection: ConnectionChoice::Any,
            };
            drop(client.deliver_batch(batch).await);
        };
        let exchange = self.wire.send(Caller::Agent, batch.in_words(), deliver).await;
        if let Ok(response) = &exchange.result {
            self.accepts_zstd |= response.accepts.is_some_and(|accepts| accepts.zstd);
        }
        let exceptions = match exchange.meaning() {
            Some(Meaning::Delivered) => {
                parse_batch_answer(exchange.body(), key, records).map_err(|error| error.to_string())
            }
            _ => Err("not a good answer".to_owned()),
        };
        let answer = BatchAnswer { batch: batch.clone(), exchange, exceptions };
        for (index, part) in batch.parts().iter().enumerate() {
            if let Some(record) = &part.record {
                self.ledger.note(record, answer.state(index));
            }
        }
        answer
    }
}

pub(super) fn delivery<'a>(record: &'a Record, correlation_id: &'a str) -> Delivery<'a> {
    Delivery {
        kind: record.kind(),
        session_id: record.session(),
        transaction_id: record.transaction(),
        body: record.body().to_vec().into(),
        key: record.key(),
        correlation_id,
        traceparent: None,
        connection: ConnectionChoice::Any,
    }
}

/// Describes a record's request.
pub(super) fn in_words(record: &Record) -> String {
    let what = match record.kind() {
        Kind::Usage => "usage-records",
        Kind::Started => "started",
        Kind::Quota => "refresh",
        Kind::Completed | Kind::Lifecycle => "completed",
    };
    let (session, transaction, key) = (record.session(), record.transaction(), record.key());
    format!("POST /api/v1/sessions/{session}/{what}, transaction_id {transaction}, Idempotency-Key {key}")
}

/// The answer to a batch.
#[derive(Clone)]
pub(super) struct BatchAnswer {
    pub(super) batch: SampleBatch,
    pub(super) exchange: Exchange,
    /// The records that were not taken, or why the answer does not fit this batch.
    pub(super) exceptions: Result<Vec<BatchException>, String>,
}

impl BatchAnswer {
    /// The status of a record; `None` if it was taken.
    pub(super) fn status(&self, index: usize) -> Option<u16> {
        let exceptions = self.exceptions.as_ref().ok()?;
        exceptions.iter().find(|exception| exception.index == index).map(|exception| exception.status)
    }

    /// Whether the agent forgets this record after the answer.
    pub(super) fn is_settled(&self, index: usize) -> bool {
        self.exceptions.is_ok() && matches!(self.status(index), None | Some(409))
    }

    /// Whether every record is settled.
    pub(super) fn is_settled_whole(&self) -> bool {
        (0..self.batch.parts().len()).all(|index| self.is_settled(index))
    }

    fn state(&self, index: usize) -> RecordState {
        match (&self.exceptions, self.status(index)) {
            (Ok(_), None | Some(409)) => RecordState::Settled,
            (Ok(_), Some(_)) => RecordState::NotTaken,
            (Err(_), _) if self.exchange.meaning() == Some(Meaning::Delivered) => RecordState::Unknown,
            (Err(_), _) => RecordState::of(&self.exchange),
        }
    }

    /// Fails: the answer to the batch is not the expected one.
    pub(super) fn broken<T>(&self, expected: &str) -> Result<T, NotPassed> {
        match &self.exceptions {
            Err(reason) if self.exchange.is_delivered() => {
                fail(format!("{expected}; this answer: {reason}"), &self.exchange)
            }
            _ => fail(expected, &self.exchange),
        }
    }
}
