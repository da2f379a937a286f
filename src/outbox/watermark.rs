//! What the intake tells the drain about `completed` events: up to where they may go.

/// How far `completed` events may go.
///
/// An event must not overtake usage that was pushed to Redis before it. The intake knows, when it takes the
/// event, how much usage was in Redis; when that much has been appended, it moves the watermark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// Events numbered below this may be sent ...
    pub completed: u64,
    /// ... once all usage numbered below this has been read.
    pub usage: u64,
}
