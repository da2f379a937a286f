//! The five logs, which are read separately.

/// A log of records, read separately from the others. The numbers are persisted: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Log {
    /// Quota requests, which wait for nothing.
    Quota = 1,
    /// Session-started events, which wait for nothing either.
    Started = 2,
    /// Usage records.
    Usage = 3,
    /// Session-completed events.
    Completed = 4,
    /// Entries on their way to the dead letters: rejected messages and another outbox's dead letters. Read only by
    /// maintenance.
    Rejected = 5,
}

impl Log {
    pub(crate) const COUNT: usize = 5;
    /// All logs, in the order in which an append numbers its records.
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
