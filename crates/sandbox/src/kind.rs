//! The kinds of deliveries.

use serde::{Deserialize, Serialize};

/// The kinds of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Usage,
    Started,
    Completed,
    Quota,
}

impl Kind {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Quota => "quota",
        }
    }

    /// The kind's name in batches and idempotency keys.
    pub(super) fn wire_name(self) -> &'static str {
        match self {
            Self::Usage => "usage_record",
            Self::Started => "session_started",
            Self::Completed => "session_completed",
            Self::Quota => "quota_refresh",
        }
    }

    /// The kind with this name in a batch. Quota refreshes are never batched.
    pub(super) fn in_batch(name: &str) -> Option<Self> {
        [Self::Usage, Self::Started, Self::Completed].into_iter().find(|kind| kind.wire_name() == name)
    }
}
