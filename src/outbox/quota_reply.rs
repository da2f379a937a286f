//! The answer to a quota request, on its way from the drain to Redis.

use tokio::sync::oneshot;

/// The answer to a quota refresh request, on its way to Redis.
pub struct QuotaReply {
    /// The data to push.
    pub data: Vec<u8>,
    /// Notified when Redis has it.
    pub done: oneshot::Sender<()>,
}
