//! The answer to a quota request, on its way from the drain to Redis.

use tokio::sync::oneshot;

/// An answer to a quota refresh on its way to Redis.
pub struct QuotaReply {
    /// What is pushed.
    pub data: Vec<u8>,
    /// Answered when Redis has it.
    pub done: oneshot::Sender<()>,
}
