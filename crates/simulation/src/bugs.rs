//! Bugs that are planted to see that they are found. Each is played at a seam, as the agent with that bug would look from
//! there: the source of the agent stays as it is.

use clap::ValueEnum;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// A commit is answered though nothing has made it durable: what is acknowledged may be gone after a power cut.
    AcknowledgeBeforeTheBarrier,
    /// A request counts as answered when it has been sent.
    SettleBeforeTheAnswer,
    /// The commit carries no checkpoint: what was committed and not acknowledged is taken twice.
    ForgetTheCheckpoint,
    /// A 424 in a batch's answer is passed over: the record counts as taken.
    Drop424,
    /// A 424 counts as a failed attempt.
    Count424,
    /// The names of new segments are not synced.
    SkipTheDirectorysFsync,
    /// The ledger is written on after a failed sync.
    ReuseTheLedger,
    /// Whoever answers settles.
    SettleOnAForeignAnswer,
    /// A session's second record is sent before its first.
    SendPastTheHead,
    /// A retry has another key.
    NewKeyOnRetry,
    /// A retry has another body.
    NewBodyOnRetry,
    /// The settlement is written without its dead letter.
    LoseADeadLetter,
    /// What is committed is acknowledged twice: what was taken behind it leaves Redis too.
    AcknowledgeTwice,
    /// The intake does not hear how much usage is left in Redis: completed events overtake it.
    UsageLeftUntold,
    /// A quota request is settled though its answer has not reached Redis.
    ForgetQuotaReply,
    /// The answer to a quota request comes to Redis twice.
    RepeatQuotaReply,
    /// The settled marks never reach the ledger.
    ForgetWhatIsSettled,
}
