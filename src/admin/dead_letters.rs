//! Listing, replaying and dropping dead letters, a page at a time, so that no request takes long.

use serde::{Deserialize, Serialize};

use super::{AdminError, Message};
use crate::outbox::{self, DeadLetter, Outbox, Payload, Reason};
use crate::record::Kind;

/// Dead letters per read.
const READ_AT_ONCE: usize = 200;
/// Dead letters scanned per page: a filter with few matches must not take forever.
const LOOKED_THROUGH: usize = 20_000;
/// Dead letters replayed or dropped per request; the answer says where to continue.
const AT_ONCE: usize = 500;
/// Maximum bytes of a search text.
const TEXT_BYTES: usize = 400;

/// A dead letter, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetterLine {
    /// Its number in this outbox.
    pub id: u64,
    /// Its reason.
    pub reason: Reason,
    /// Its kind, or what it would have been.
    pub kind: Kind,
    /// The reason in words.
    pub detail: String,
    /// Delivery attempts.
    pub attempts: u32,
    /// When it was accepted.
    pub first_at: String,
    /// When it became a dead letter.
    pub last_at: String,
    /// Bytes of the producer's message.
    pub bytes: usize,
    /// Its session, if it is a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_session_id: Option<String>,
    /// Its transaction, if it is a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction_id: Option<String>,
    /// The `X-Correlation-ID` of its requests, if it is a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

impl From<&DeadLetter> for DeadLetterLine {
    fn from(letter: &DeadLetter) -> Self {
        let record = match &letter.payload {
            Payload::Record(record) => Some(record),
            Payload::Raw { .. } => None,
        };
        Self {
            api_session_id: record.map(|record| record.session().to_owned()),
            transaction_id: record.map(|record| record.transaction().to_owned()),
            correlation_id: record.map(|record| record.correlation_id().into_owned()),
            id: letter.id,
            reason: letter.reason,
            kind: letter.kind(),
            detail: letter.detail.clone(),
            attempts: letter.attempts,
            first_at: letter.first_at.to_rfc3339(),
            last_at: letter.last_at.to_rfc3339(),
            bytes: letter.original().len(),
        }
    }
}

/// A dead letter with the producer's exact bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetterDetail {
    /// About it.
    #[serde(flatten)]
    pub line: DeadLetterLine,
    /// The message as pushed.
    pub original_message: Message,
}

/// Some dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DeadLetterPage {
    /// Oldest first.
    pub dead_letters: Vec<DeadLetterLine>,
    /// Start of the next page, also if this one is short or empty; null: this was the last.
    pub next: Option<u64>,
}

/// Which dead letters to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LetterFilter {
    /// Only those with this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Only those of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Only those with every word of this text, at most 400 bytes, in their number, reason, kind, detail, session,
    /// transaction or correlation ID, ignoring case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Only those from this number on.
    #[serde(default)]
    pub from: u64,
    /// Maximum number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl LetterFilter {
    /// Why it is invalid, if it is.
    pub fn fault(&self) -> Option<&'static str> {
        let is_long = self.text.as_ref().is_some_and(|text| text.len() > TEXT_BYTES);
        is_long.then_some("text: at most 400 bytes")
    }

    /// The words to search for, as [`is_found`] needs them.
    fn words(&self) -> Vec<String> {
        let words = self.text.iter().flat_map(|text| text.split_whitespace());
        words.map(str::to_lowercase).collect()
    }

    fn wants(&self, letter: &DeadLetter, words: &[String]) -> bool {
        self.reason.is_none_or(|reason| reason == letter.reason)
            && self.kind.is_none_or(|kind| kind == letter.kind())
            && (words.is_empty() || is_found(letter, words))
    }
}

/// Whether every word occurs in a dead letter's listed fields. Names may be written with spaces.
fn is_found(letter: &DeadLetter, words: &[String]) -> bool {
    let (reason, kind) = (letter.reason.label(), letter.kind().name());
    let mut text = format!("{} {reason} {kind} {}", letter.id, letter.detail);
    if let Payload::Record(record) = &letter.payload {
        for id in [record.session(), record.transaction(), &record.correlation_id()] {
            text.push('\n');
            text.push_str(id);
        }
    }
    let text = text.to_lowercase();
    words.iter().all(|word| text.contains(word))
}

/// The dead letters to replay or drop: by numbers, by reason, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// These, at most 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u64>,
    /// All with this reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// All.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Only from this number on.
    #[serde(default)]
    pub from: u64,
    /// Only below this number; default: below the next number to be assigned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<u64>,
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.reason, &self.ids[..]) {
            (Some(reason), _) => write!(f, "reason {}", reason.label()),
            (None, [id]) => write!(f, "number {id}"),
            (None, []) => f.write_str("all"),
            (None, ids) => write!(f, "{} numbers", ids.len()),
        }
    }
}

impl Selection {
    /// Why it is invalid, if it is: it selects nothing, in two ways, or too much.
    pub fn fault(&self) -> Option<&'static str> {
        let named = [!self.ids.is_empty(), self.reason.is_some(), self.all];
        match named.iter().filter(|named| **named).count() {
            1 if self.ids.len() > AT_ONCE => Some("ids: at most 500 per request"),
            1 => None,
            _ => Some("give one of ids, reason or all"),
        }
    }
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Replayed {
    /// Replayed as records, with the same keys and bodies.
    pub replayed: Vec<u64>,
    /// Not valid records: correct them and push them to Redis again.
    pub not_records: Vec<u64>,
    /// No such dead letters.
    pub unknown: Vec<u64>,
    /// The rest: send this next.
    pub next: Option<Selection>,
    /// Why it stopped early. What was done stays done; `next` is the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How many dead letters were dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Dropped {
    /// Number of dead letters dropped.
    pub dropped: u64,
    /// The rest: send this next.
    pub next: Option<Selection>,
}

/// At most `limit` dead letters.
pub async fn list_dead_letters(
    outbox: &Outbox,
    filter: &LetterFilter,
    limit: usize,
) -> Result<DeadLetterPage, AdminError> {
    list_among(outbox, filter, limit, LOOKED_THROUGH).await
}

/// At most `limit` among the next scanned ones.
async fn list_among(
    outbox: &Outbox,
    filter: &LetterFilter,
    limit: usize,
    mut left: usize,
) -> Result<DeadLetterPage, AdminError> {
    let (mut dead_letters, mut from, words) = (Vec::new(), filter.from, filter.words());
    loop {
        let page = outbox.dead_letters(from, READ_AT_ONCE.min(left.max(1))).await?;
        let Some(last) = page.last() else { return Ok(DeadLetterPage { dead_letters, next: None }) };
        if left == 0 {
            return Ok(DeadLetterPage { dead_letters, next: Some(from) });
        }
        left = left.saturating_sub(page.len());
        from = last.id + 1;
        for letter in page.iter().filter(|letter| filter.wants(letter, &words)) {
            if dead_letters.len() >= limit {
                return Ok(DeadLetterPage { dead_letters, next: Some(letter.id) });
            }
            dead_letters.push(letter.into());
        }
    }
}

/// The dead letter with this number.
pub async fn find_dead_letter(outbox: &Outbox, id: u64) -> Result<Option<DeadLetterDetail>, AdminError> {
    let letter = outbox.dead_letter(id).await?;
    Ok(letter.map(|letter| DeadLetterDetail {
        line: (&letter).into(),
        original_message: Message::from(&letter.original()[..]),
    }))
}

/// Replays dead letters as records, some hundreds at a time.
pub(super) async fn replay_selected(outbox: &Outbox, selection: &Selection) -> Result<Replayed, AdminError> {
    let (ids, next) = chosen(outbox, selection).await?;
    let outcome = outbox.replay(&ids).await;
    let next = match &outcome.error {
        None => next,
        Some(_) => left(selection, &ids, &outcome).or(next),
    };
    let error = outcome.error.map(|error| crate::admin::chain(&error));
    let outbox::Replayed { replayed, not_records, unknown, .. } = outcome;
    Ok(Replayed { replayed, not_records, unknown, next, error })
}

/// The selected ones that were not reached, as a selection.
fn left(selection: &Selection, ids: &[u64], outcome: &outbox::Replayed) -> Option<Selection> {
    let outcome = [&outcome.replayed, &outcome.not_records, &outcome.unknown];
    let is_left = |id: &&u64| !outcome.iter().any(|done| done.contains(id));
    let left: Vec<u64> = ids.iter().filter(is_left).copied().collect();
    let from = *left.iter().min()?;
    Some(if selection.ids.is_empty() {
        Selection { from, ..selection.clone() }
    } else {
        Selection { ids: left, ..selection.clone() }
    })
}

/// The selected numbers, at most [`AT_ONCE`], and the rest of the selection.
pub(super) async fn chosen(
    outbox: &Outbox,
    selection: &Selection,
) -> Result<(Vec<u64>, Option<Selection>), AdminError> {
    if !selection.ids.is_empty() {
        return Ok((selection.ids.clone(), None));
    }
    // A replayed one may become a dead letter again under a new number, which must not be selected again.
    let below = selection.below.unwrap_or_else(|| outbox.next_dead_letter());
    let filter = LetterFilter { reason: selection.reason, from: selection.from, ..LetterFilter::default() };
    let page = list_dead_letters(outbox, &filter, AT_ONCE).await?;
    let ids = page.dead_letters.iter().map(|letter| letter.id).filter(|id| *id < below).collect();
    let next = page.next.filter(|next| *next < below);
    Ok((ids, next.map(|from| Selection { from, below: Some(below), ..selection.clone() })))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{open, rejected, started, until};
    use super::*;
    use crate::outbox::Entry;

    #[test]
    fn a_search_matches_every_word_in_any_listed_field() {
        let Entry::Record(record) = started(7) else { unreachable!("it is a record") };
        let (session, transaction) = (record.session().to_uppercase(), record.transaction().to_owned());
        let correlation = record.correlation_id().into_owned();
        let letter = DeadLetter {
            id: 4711,
            reason: Reason::SessionUnknown,
            detail: "status 404: Straße nicht gefunden".into(),
            attempts: 1,
            first_at: record.accepted_at(),
            last_at: record.accepted_at(),
            payload: Payload::Record(record),
        };
        let finds = |text: &str| {
            let filter = LetterFilter { text: Some(text.into()), ..LetterFilter::default() };
            filter.wants(&letter, &filter.words())
        };
        for text in [
            "",
            "  ",
            "4711",
            "Session_Unknown",
            "session unknown",
            "session_started",
            "STATUS 404",
            "straße",
        ] {
            assert!(finds(text), "{text:?}");
        }
        assert!(finds(&session) && finds(&transaction) && finds(&correlation));
        assert!(finds(&format!("{transaction} 404")), "in any order");
        assert!(!finds("refused") && !finds(&format!("{transaction} 405")));
        let long = LetterFilter { text: Some("x".repeat(401)), ..LetterFilter::default() };
        assert!(long.fault().is_some() && LetterFilter::default().fault().is_none());
    }

    #[tokio::test]
    async fn a_filter_with_few_matches_gives_short_pages_and_misses_none() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, threads) = open(dir.path());
        let kind = |n| if n == 5 || n == 17 { Kind::Quota } else { Kind::Usage };
        let letters = (0..20).map(|n| rejected(kind(n))).collect();
        outbox.append(letters, None).await.unwrap().await.unwrap().unwrap();
        until("all are dead letters", || outbox.stats().dead_letters == 20).await;
        let mut filter = LetterFilter { kind: Some(Kind::Quota), ..LetterFilter::default() };
        let (mut pages, mut found) = (0, Vec::new());
        loop {
            let page = list_among(&outbox, &filter, 100, 4).await.unwrap();
            pages += 1;
            found.extend(page.dead_letters.iter().map(|letter| letter.id));
            let Some(next) = page.next else { break };
            assert_eq!(next, filter.from.max(1) + 4, "no page scans further");
            filter.from = next;
        }
        assert_eq!((pages, found.len()), (5, 2), "{found:?}");
        drop(outbox);
        assert!(threads.join());
    }
}
