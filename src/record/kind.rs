//! The input queues and the kinds of records in them.

/// One of the three input queues. Its [`label`](Queue::label) is the `kind` of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Queue {
    /// Usage records, for which customers are billed.
    Usage,
    /// Session started and completed.
    Lifecycle,
    /// Quota refresh requests.
    Quota,
}

impl Queue {
    /// All queues, in display order.
    pub const ALL: [Self; 3] = [Self::Usage, Self::Lifecycle, Self::Quota];

    /// The name in metrics, logs and the command line.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Lifecycle => "lifecycle",
            Self::Quota => "quota",
        }
    }
}

/// The kind of a record. The numbers are persisted: never renumber.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[repr(u8)]
pub enum Kind {
    /// A usage record.
    #[serde(rename = "usage_record")]
    Usage = 1,
    /// A session-started event.
    #[serde(rename = "session_started")]
    Started = 2,
    /// A session-completed event.
    #[serde(rename = "session_completed")]
    Completed = 3,
    /// A quota refresh request.
    #[serde(rename = "quota_refresh")]
    Quota = 4,
    /// A lifecycle message with an unknown event type. Only ever a dead letter.
    #[serde(rename = "session_lifecycle")]
    Lifecycle = 5,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Usage, Self::Started, Self::Completed, Self::Quota, Self::Lifecycle];

    /// The kind with this persisted number.
    pub fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == n)
    }

    /// The queue of this kind.
    pub const fn queue(self) -> Queue {
        match self {
            Self::Usage => Queue::Usage,
            Self::Started | Self::Completed | Self::Lifecycle => Queue::Lifecycle,
            Self::Quota => Queue::Quota,
        }
    }

    /// The name in the idempotency key. It must never change.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage_record",
            Self::Started => "session_started",
            Self::Completed => "session_completed",
            Self::Quota => "quota_refresh",
            Self::Lifecycle => "session_lifecycle",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persisted_numbers_come_back_as_the_kind_they_were() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_u8(kind as u8), Some(kind));
        }
        assert_eq!(Kind::ALL.map(|kind| kind as u8), [1, 2, 3, 4, 5]);
        assert_eq!(Kind::from_u8(0), None);
        assert_eq!(Kind::from_u8(6), None);
    }
}
