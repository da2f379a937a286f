//! A dead letter: an undeliverable message, the reason, and the exact bytes.

use std::borrow::Cow;

use crate::record::{Kind, Record, Timestamp};

/// Why a record became a dead letter. The numbers are persisted: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Reason {
    /// It does not conform to the contract.
    Invalid = 0,
    /// The `ControlPlane` refused it.
    Refused = 1,
    /// A quota request that expired.
    Expired = 2,
    /// The `ControlPlane` did not know its session within the grace period.
    SessionUnknown = 3,
    /// The `ControlPlane` failed on it repeatedly while other records passed.
    Poison = 4,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 5] =
        [Self::Invalid, Self::Refused, Self::Expired, Self::SessionUnknown, Self::Poison];

    /// The reason with this persisted number.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u8 == n)
    }

    /// The name in metrics, in the mirror and on the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::SessionUnknown => "session_unknown",
            Self::Poison => "poison",
        }
    }
}

/// A stored dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number, unique and increasing in this outbox.
    pub id: u64,
    /// The reason.
    pub reason: Reason,
    /// The reason as text: for an answer, its status and its first KiB.
    pub detail: String,
    /// The number of delivery attempts.
    pub attempts: u32,
    /// When it was accepted.
    pub first_at: Timestamp,
    /// When it was given up.
    pub last_at: Timestamp,
    /// Its original content.
    pub payload: Payload,
}

/// The original content of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A record, which can be sent again with its own key and body.
    Record(Record),
    /// A message that is not a valid record.
    Raw {
        /// The kind it would have had.
        kind: Kind,
        /// When it was taken.
        accepted_at: Timestamp,
        /// Its exact bytes.
        bytes: Box<[u8]>,
    },
}

impl DeadLetter {
    /// Its kind, or the one it would have had.
    pub fn kind(&self) -> Kind {
        match &self.payload {
            Payload::Record(record) => record.kind(),
            Payload::Raw { kind, .. } => *kind,
        }
    }

    /// Its variable memory in bytes.
    pub(crate) fn size(&self) -> usize {
        let payload = match &self.payload {
            Payload::Record(record) => record.body().len(),
            Payload::Raw { bytes, .. } => bytes.len(),
        };
        self.detail.len() + payload
    }

    /// The producer's exact bytes.
    pub fn original(&self) -> Cow<'_, [u8]> {
        match &self.payload {
            Payload::Record(record) => record.original(),
            Payload::Raw { bytes, .. } => Cow::Borrowed(bytes),
        }
    }
}
