//! The producer's load, from a seed: sessions with events, usage and quota requests, some records that will be refused, and
//! some malformed messages.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;

pub(crate) const USAGE: &str = "queue:usage_records";
pub(crate) const LIFECYCLE: &str = "queue:session_lifecycle";
pub(crate) const QUOTA: &str = "queue:quota_refresh";
pub(crate) const QUEUES: [&str; 3] = [USAGE, LIFECYCLE, QUOTA];
/// Prefix of the transactions that the ControlPlane refuses.
pub(crate) const REFUSED: &str = "refused-";

/// Concurrent sessions.
const OPEN: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Usage,
    Started,
    Completed,
    Quota,
    /// A message that is not a record.
    Malformed,
}

impl Kind {
    /// The kind's names in the sandbox's accounts and in idempotency keys.
    pub(crate) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Usage => ("usage", "usage_record"),
            Self::Started => ("started", "session_started"),
            Self::Completed => ("completed", "session_completed"),
            Self::Quota => ("quota", "quota_refresh"),
            Self::Malformed => ("", ""),
        }
    }
}

/// A message that was pushed.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub kind: Kind,
    /// The transaction, or the complete message if it is malformed.
    pub id: String,
}

impl Pushed {
    /// Whether it must become a dead letter.
    pub(crate) fn must_die(&self) -> bool {
        self.kind == Kind::Malformed || self.id.starts_with(REFUSED)
    }
}

struct Session {
    name: String,
    usage: u32,
}

/// Messages for one queue.
pub(crate) type Part = (&'static str, Vec<String>);

/// The producer.
pub(crate) struct Load {
    dice: StdRng,
    name: String,
    sessions: u32,
    malformed: u32,
    open: Vec<Session>,
    /// Everything pushed so far.
    pub pushed: Vec<Pushed>,
}

impl Load {
    pub(crate) fn new(seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed ^ 0x10ad);
        Self {
            dice,
            name: format!("s{seed}"),
            sessions: 0,
            malformed: 0,
            open: Vec::new(),
            pushed: Vec::new(),
        }
    }

    /// About this many more messages, in the order to push them.
    pub(crate) fn step(&mut self, messages: usize) -> Vec<Part> {
        let (mut started, mut usage, mut quota, mut completed) = (vec![], vec![], vec![], vec![]);
        while self.open.len() < OPEN.min(messages.div_ceil(4)) {
            let session = Session { name: format!("{}-{}", self.name, self.sessions), usage: 0 };
            self.sessions += 1;
            started.push(self.event(&session.name, Kind::Started));
            if self.dice.random_bool(0.2) {
                quota.push(self.quota(&session.name));
            }
            self.open.push(session);
        }
        for _ in 0..messages.saturating_sub(started.len() + quota.len()) {
            if self.dice.random_bool(0.005) {
                usage.push(self.malformed());
                continue;
            }
            let at = self.dice.random_range(0..self.open.len());
            self.open[at].usage += 1;
            let (name, number) = (self.open[at].name.clone(), self.open[at].usage);
            usage.push(self.usage(&name, number));
        }
        while self.open.len() > OPEN / 2 || (self.open.len() > 1 && self.dice.random_bool(0.3)) {
            let at = self.dice.random_range(0..self.open.len());
            let session = self.open.swap_remove(at);
            completed.push(self.event(&session.name, Kind::Completed));
        }
        vec![(LIFECYCLE, started), (QUOTA, quota), (USAGE, usage), (LIFECYCLE, completed)]
    }

    /// Ends all open sessions.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let open = std::mem::take(&mut self.open);
        vec![(LIFECYCLE, open.iter().map(|session| self.event(&session.name, Kind::Completed)).collect())]
    }

    fn note(&mut self, kind: Kind, id: String) -> String {
        self.pushed.push(Pushed { kind, id: id.clone() });
        id
    }

    fn event(&mut self, session: &str, kind: Kind) -> String {
        let event_type = kind.names().1;
        let id = self.note(kind, format!("{event_type}-{session}"));
        json!({
            "transaction_id": id, "api_session_id": session, "customer_id": "customer-1",
            "event_type": event_type, "timestamp": "2026-01-01T00:00:00Z",
        })
        .to_string()
    }

    fn quota(&mut self, session: &str) -> String {
        let id = self.note(Kind::Quota, format!("quota-{session}"));
        json!({
            "transaction_id": id, "api_session_id": session, "customer_id": "customer-1",
            "product_code": "speech_transcription", "timestamp": "2026-01-01T00:00:03Z",
        })
        .to_string()
    }

    fn usage(&mut self, session: &str, number: u32) -> String {
        let prefix = if self.dice.random_bool(0.002) { REFUSED } else { "" };
        let id = self.note(Kind::Usage, format!("{prefix}usage-{session}-{number}"));
        // Most are short; some are as long as a record with a large extension.
        let padding = if self.dice.random_bool(0.01) { self.dice.random_range(1000..20_000) } else { 0 };
        json!({
            "transaction_id": id, "api_session_id": session, "customer_id": "customer-1",
            "product_code": "speech_transcription", "connection_duration_seconds": 12.5,
            "data_bytes_processed": self.dice.random_range(0..1_000_000), "audio_duration_seconds": 3.25,
            "request_count": 1, "request_timestamp": "2026-01-01T00:00:01.5Z",
            "response_timestamp": "2026-01-01T00:00:02Z", "sequence": number, "padding": "x".repeat(padding),
        })
        .to_string()
    }

    fn malformed(&mut self) -> String {
        self.malformed += 1;
        let message = format!("{{\"malformed\":\"{}-{}\"", self.name, self.malformed);
        self.note(Kind::Malformed, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_same_load_every_time_and_another_seed_another() {
        let of = |seed| {
            let mut load = Load::new(seed);
            let steps: Vec<_> = (0..5).map(|_| load.step(100)).collect();
            (steps, load.finish())
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        let mut load = Load::new(3);
        let messages: usize = (0..50).flat_map(|_| load.step(200)).map(|(_, part)| part.len()).sum();
        assert_eq!(messages, load.pushed.len());
        assert!(load.pushed.iter().any(|pushed| pushed.kind == Kind::Malformed));
        assert!(load.pushed.iter().any(|pushed| pushed.id.starts_with(REFUSED)));
    }
}
