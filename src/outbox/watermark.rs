//! The intake's message to the drain about `completed` events: how far they may be sent.

/// How far `completed` events may be sent.
///
/// An event must not overtake usage that was pushed to Redis before it. When the intake takes the event, it knows how much
/// usage was in Redis; once that much has been appended, it moves the watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// Events numbered below this may be sent ...
    pub completed: u64,
    /// ... once all usage numbered below this has been read.
    pub usage: u64,
}
