//! Bugs planted to check that they are found. Each is simulated at a seam, with the effect that an agent with this bug would
//! have there; the agent's source is unchanged.

use clap::ValueEnum;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// A commit is confirmed before it is durable: acknowledged records may be lost in a power cut.
    AcknowledgeBeforeTheBarrier,
    /// A request counts as answered once it has been sent.
    SettleBeforeTheAnswer,
    /// The commit carries no checkpoint: committed but unacknowledged messages are taken twice.
    ForgetTheCheckpoint,
    /// A 424 in a batch's answer is ignored: the record counts as taken.
    Drop424,
    /// A 424 counts as a failed attempt.
    Count424,
    /// The names of new segments are not synced.
    SkipTheDirectorysFsync,
    /// The ledger is written to after a failed sync.
    ReuseTheLedger,
    /// Any answer settles, whoever sent it.
    SettleOnAForeignAnswer,
    /// A session's second record is sent before its first.
    SendPastTheHead,
    /// A retry has another key.
    NewKeyOnRetry,
    /// Retries have another body.
    NewBodyOnRetry,
    /// The settlement is written without its dead letter.
    LoseADeadLetter,
    /// Committed messages are acknowledged twice: messages taken after them also leave Redis.
    AcknowledgeTwice,
    /// The intake does not learn how much usage is left in Redis: completed events overtake it.
    UsageLeftUntold,
    /// A quota request is settled although its answer has not reached Redis.
    ForgetQuotaReply,
    /// The answer to a quota request reaches Redis twice.
    RepeatQuotaReply,
    /// Commands and their results are never noted.
    ForgetACommand,
    /// A token signed with a key other than the ControlPlane's is accepted.
    ObeyAForgedToken,
    /// Settlements never reach the ledger.
    ForgetWhatIsSettled,
}
