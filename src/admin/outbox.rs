//! The waiting records, and counters of the rest.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::AdminError;
use crate::outbox::{Entry, Log, Outbox, Stats, Unsettled};
use crate::record::Kind;

/// Waiting records read at once.
const READ_AT_ONCE: usize = 500;
/// Records skipped at once to reach a distant position: the outbox serves others in between.
const STEP: u64 = 5_000;

/// A number for each kind of record, by the kind's name.
pub type KindCounts = BTreeMap<String, u64>;

/// Counters, depths and sizes of the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OutboxStats {
    /// Which outbox this is: made with its folder.
    pub id: Uuid,
    /// Accepted since the outbox was created, by kind.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub enqueued: KindCounts,
    /// Delivered.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub delivered: KindCounts,
    /// Duplicates, as reported by the ControlPlane.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub duplicates: KindCounts,
    /// Moved to a file.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub exported: KindCounts,
    /// Dead-lettered.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub dead_lettered: KindCounts,
    /// Waiting.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub depth: KindCounts,
    /// Bytes of the waiting records.
    pub bytes: u64,
    /// Disk usage in bytes.
    pub disk_bytes: u64,
    /// The part that counts towards the limit; the ledger and the reserve do not.
    #[serde(default)]
    pub counted_bytes: u64,
    /// The limit of that.
    pub capacity_bytes: u64,
    /// Databases in use.
    pub segments: usize,
    /// Dead letters stored now.
    pub dead_letters: u64,
    /// Their bytes.
    pub dead_letter_bytes: u64,
    /// Dead letters deleted for their age.
    pub dead_letters_expired: u64,
    /// Damaged databases in quarantine.
    pub quarantined_segments: u64,
    /// Known records in them.
    pub quarantined_records: u64,
    /// Whether records are accepted.
    pub accepting: bool,
    /// Why not, if they are not.
    pub paused: Option<String>,
}

impl From<&Stats> for OutboxStats {
    fn from(stats: &Stats) -> Self {
        let by_kind = |values: [u64; 5]| -> KindCounts {
            Kind::ALL.iter().zip(values).map(|(kind, value)| (kind.name().to_owned(), value)).collect()
        };
        Self {
            id: stats.id,
            enqueued: by_kind(stats.enqueued),
            delivered: by_kind(stats.delivered),
            duplicates: by_kind(stats.duplicates),
            exported: by_kind(stats.exported),
            dead_lettered: by_kind(stats.dead_lettered.map(|reasons| reasons.iter().sum())),
            depth: by_kind(stats.depth),
            bytes: stats.bytes,
            disk_bytes: stats.disk_bytes,
            counted_bytes: stats.counted_bytes,
            capacity_bytes: stats.capacity_bytes,
            segments: stats.segments,
            dead_letters: stats.dead_letters,
            dead_letter_bytes: stats.dead_letter_bytes,
            dead_letters_expired: stats.dead_letters_expired,
            quarantined_segments: stats.quarantined_segments,
            quarantined_records: stats.quarantined_records,
            accepting: stats.accepting,
            paused: stats.paused.map(str::to_owned),
        }
    }
}

/// A waiting record, without its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaitingLine {
    /// Its number in this outbox.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Its session.
    pub session: String,
    /// Its transaction.
    pub transaction: String,
    /// Its idempotency key.
    pub key: Uuid,
    /// When it was accepted.
    pub accepted_at: String,
    /// Bytes of its body.
    pub bytes: usize,
}

impl WaitingLine {
    fn of(unsettled: &Unsettled) -> Option<Self> {
        // A rejected message is about to become a dead letter.
        let Entry::Record(record) = &unsettled.entry else { return None };
        Some(Self {
            id: unsettled.ticket.seq,
            kind: record.kind(),
            session: record.session().to_owned(),
            transaction: record.transaction().to_owned(),
            key: record.key(),
            accepted_at: record.accepted_at().to_rfc3339(),
            bytes: record.body().len(),
        })
    }
}

/// A waiting record with its body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaitingDetail {
    /// About it.
    #[serde(flatten)]
    pub line: WaitingLine,
    /// The request's body.
    pub body: String,
}

/// A page of waiting records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WaitingPage {
    /// In order of acceptance, kind by kind: quota, started, usage, completed.
    pub records: Vec<WaitingLine>,
    /// Start of the next page; null: this was the last.
    pub next: Option<String>,
}

/// Which waiting records to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct WaitingFilter {
    /// Where to continue: the previous page's `next`.
    pub cursor: Option<String>,
    /// Maximum number.
    pub limit: Option<usize>,
}

const READ: [Log; 4] = [Log::Quota, Log::Started, Log::Usage, Log::Completed];

fn place(cursor: &str) -> Option<(usize, u64)> {
    let (name, from) = cursor.split_once(':')?;
    Some((READ.iter().position(|log| log.label() == name)?, from.parse().ok()?))
}

/// At most `limit` waiting records, from `cursor` on.
pub async fn list_waiting(
    outbox: &Outbox,
    cursor: Option<&str>,
    limit: usize,
) -> Result<WaitingPage, AdminError> {
    let (first, mut from) = match cursor {
        Some(cursor) => place(cursor).ok_or(AdminError::Cursor)?,
        None => (0, 0),
    };
    let end = *outbox.last().borrow() + 1;
    let mut records = Vec::new();
    for log in &READ[first..] {
        reach(outbox, *log, from.min(end)).await?;
        while from < end {
            let most = READ_AT_ONCE.min(limit.saturating_sub(records.len()).max(1));
            let page = outbox.read(*log, from, end, most).await?;
            for unsettled in &page.records {
                if records.len() >= limit {
                    let next = Some(format!("{}:{}", log.label(), unsettled.ticket.seq));
                    return Ok(WaitingPage { records, next });
                }
                records.extend(WaitingLine::of(unsettled));
            }
            from = page.next;
        }
        from = 0;
    }
    Ok(WaitingPage { records, next: None })
}

/// The waiting record with this number.
pub async fn find_waiting(outbox: &Outbox, id: u64) -> Result<Option<WaitingDetail>, AdminError> {
    if id > *outbox.last().borrow() {
        return Ok(None);
    }
    for log in READ {
        reach(outbox, log, id).await?;
        let page = outbox.read(log, id, id + 1, 1).await?;
        if let Some(unsettled) = page.records.first().filter(|unsettled| unsettled.ticket.seq == id)
            && let Entry::Record(record) = &unsettled.entry
        {
            let body = String::from_utf8_lossy(record.body()).into_owned();
            return Ok(WaitingLine::of(unsettled).map(|line| WaitingDetail { line, body }));
        }
    }
    Ok(None)
}

/// Makes sure that a log has been read up to this number.
async fn reach(outbox: &Outbox, log: Log, below: u64) -> Result<(), AdminError> {
    loop {
        let at = outbox.read_until(log);
        if at >= below {
            return Ok(());
        }
        // The records read here are discarded: only those from `below` on would be kept.
        outbox.read(log, below, below.min(at + STEP), 1).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, started};
    use super::*;

    #[tokio::test]
    async fn each_record_is_found_by_its_number_before_its_log_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, threads) = open(dir.path());
        let mut last = 0;
        for append in 0..12 {
            let records = (0..1_000).map(|n| started(append * 1_000 + n)).collect();
            last = outbox.append(records, None).await.unwrap().await.unwrap().unwrap();
        }
        drop(outbox);
        assert!(threads.join());

        let (outbox, threads) = open(dir.path());
        let first = last - 11_999;
        assert!(outbox.read_until(Log::Started) < first + STEP, "far from the record");
        for id in [last, first, last - 1, first + 5_000, first + 63, first + 64] {
            let found = find_waiting(&outbox, id).await.unwrap().unwrap();
            assert_eq!((found.line.id, found.line.transaction), (id, format!("t-{}", id - first)));
        }
        for id in [first - 1, last + 1, u64::MAX] {
            assert_eq!(find_waiting(&outbox, id).await.unwrap(), None, "{id}");
        }
        let page = outbox.read(Log::Started, 0, last + 1, 20_000).await.unwrap();
        outbox.settle(&page.records[7].ticket, crate::outbox::Settlement::Delivered);
        assert_eq!(find_waiting(&outbox, first + 7).await.unwrap(), None, "it no longer waits");
        let page = list_waiting(&outbox, Some(&format!("started:{}", last - 2)), 10).await.unwrap();
        assert_eq!(page.records.iter().map(|line| line.id).collect::<Vec<_>>(), [last - 2, last - 1, last]);
        for cursor in ["", "started", "started:", "started:x", "whim:1", "Started:1", "started:-1"] {
            assert!(
                matches!(list_waiting(&outbox, Some(cursor), 1).await, Err(AdminError::Cursor)),
                "{cursor}"
            );
        }
        drop(outbox);
        assert!(threads.join());
    }
}
