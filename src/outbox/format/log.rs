//! The five logs, which are read apart.

/// One of the logs of records, each read by itself. The numbers are persisted: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Log {
    /// Quota requests: they wait for nobody.
    Quota = 1,
    /// Session-started events: they wait for nobody either.
    Started = 2,
    /// Usage records.
    Usage = 3,
    /// Session-completed events.
    Completed = 4,
    /// What is on its way to the dead letters: what is no record, and what another outbox had there. Maintenance's alone.
    Rejected = 5,
}

impl Log {
    pub(crate) const COUNT: usize = 5;
    /// All of them, in the order in which an append numbers its records.
    pub(crate) const ALL: [Self; Self::COUNT] =
        [Self::Quota, Self::Started, Self::Usage, Self::Completed, Self::Rejected];

    pub(crate) fn index(self) -> usize {
        self as usize - 1
    }

    /// The name on the command line and in reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Quota => "quota",
            Self::Started => "started",
            Self::Usage => "usage",
            Self::Completed => "completed",
            Self::Rejected => "rejected",
        }
    }
}
