//! Random sequences of events against a plain log: what is handed out, when, and that nothing is left behind.
//!
//! Reading is decided as in the drain, with a window of a few records, so lanes are constantly cut off, emptied and
//! refilled. A read takes a while, and answers arrive meanwhile.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::outbox::{Entry, LogPage, Watermark};

const READ: usize = 5;
const KINDS: [Kind; 4] = [Kind::Usage, Kind::Started, Kind::Completed, Kind::Quota];

#[derive(Clone, Debug)]
enum Op {
    Append { kind: Kind, session: u8, count: u8 },
    BeginRead,
    EndRead,
    Pick { probe: bool },
    Settle(Index),
    PutBack(Index, u64),
    Tick,
    Expire,
    Hold([bool; LOGS.len()]),
    ProbeHeld(Log),
}

fn op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![8 => Just(0usize), 1 => Just(1), 1 => Just(2), 1 => Just(3)];
    prop_oneof![
        // Mostly usage of few sessions, though more than fit in the window, and in runs longer than a lane.
        4 => (kind, 0..9_u8, 1..12_u8).prop_map(|(kind, session, count)| {
            Op::Append { kind: KINDS[kind], session, count: if kind == 0 { count } else { 1 } }
        }),
        8 => Just(Op::BeginRead),
        8 => Just(Op::EndRead),
        12 => any::<bool>().prop_map(|probe| Op::Pick { probe }),
        9 => any::<Index>().prop_map(Op::Settle),
        3 => (any::<Index>(), 0..4_u64).prop_map(|(which, delay)| Op::PutBack(which, delay)),
        2 => Just(Op::Tick),
        1 => Just(Op::Expire),
        1 => any::<[bool; LOGS.len()]>().prop_map(Op::Hold),
        3 => prop::sample::select(&LOGS[..]).prop_map(Op::ProbeHeld),
    ]
}

struct Model {
    lanes: Lanes,
    read_ahead: ReadAhead,
    /// Number 1 is at index 0.
    log: Vec<Unsettled>,
    settled: Vec<bool>,
    attempts: Vec<u32>,
    reading: Option<(Log, LogPage)>,
    in_flight: Vec<(u64, LaneKey, Item)>,
    /// Parcels handed out so far: each record in flight knows its own.
    parcels: u64,
    order: SessionOrder,
    seconds: u64,
    batching: Option<BatchLimits>,
}

impl Model {
    fn new(batching: Option<BatchLimits>, order: SessionOrder) -> Self {
        let mut lanes = Lanes::new(FEW);
        lanes.set_order(order);
        Self {
            lanes,
            parcels: 0,
            order,
            read_ahead: ReadAhead::new(FEW),
            log: Vec::new(),
            settled: Vec::new(),
            attempts: Vec::new(),
            reading: None,
            in_flight: Vec::new(),
            seconds: 0,
            batching,
        }
    }

    fn append(&mut self, kind: Kind, session: u8) {
        let seq = self.log.len() as u64 + 1;
        self.log
            .push(Unsettled::new(seq, record(kind, &format!("s{session}"), &format!("t{seq}"), seq as i64)));
        self.settled.push(false);
        self.attempts.push(0);
    }

    fn read(&self, log: Log, from: u64, upto: u64) -> LogPage {
        let mut page = LogPage { records: Vec::new(), next: upto };
        for Unsettled { ticket, entry } in &self.log {
            let wanted = ticket.log == log && (from..upto).contains(&ticket.seq);
            if !wanted || self.settled[ticket.seq as usize - 1] {
                continue;
            }
            if page.records.len() == READ {
                page.next = ticket.seq;
                break;
            }
            page.records.push(Unsettled { ticket: *ticket, entry: entry.clone() });
        }
        page
    }

    fn begin_read(&mut self) {
        if self.reading.is_some() {
            return;
        }
        let end = self.log.len() as u64 + 1;
        let watermark = Watermark { completed: end, usage: end };
        if let Some(ReadRange { log, from, upto }) = self.read_ahead.next(&mut self.lanes, end, watermark) {
            self.reading = Some((log, self.read(log, from, upto)));
        }
    }

    fn end_read(&mut self) {
        if let Some((log, page)) = self.reading.take() {
            self.read_ahead.loaded(&mut self.lanes, log, page);
        }
    }

    /// Takes the next record, and checks that it may be sent.
    fn pick(&mut self, probe: bool) -> Result<bool, TestCaseError> {
        let ready = self.lanes.has_ready();
        let picked = if probe { self.lanes.pick_probe(|_| 0) } else { self.lanes.pick(self.batching) };
        prop_assert_eq!(ready, picked.is_some(), "a lane reported as ready can be taken");
        let Some(parcel) = picked else { return Ok(false) };
        prop_assert!(records_in(&parcel) == 1 || self.batching.is_some());
        self.judge_parcel(parcel)?;
        Ok(true)
    }

    fn judge_parcel(&mut self, parcel: Parcel) -> Result<(), TestCaseError> {
        self.parcels += 1;
        for (key, item) in items_of(parcel) {
            self.judge(key, item)?;
        }
        Ok(())
    }

    /// Whether this record is in the parcel being checked, before the one being checked now.
    fn is_in_this_parcel(&self, ticket: &Ticket) -> bool {
        self.in_flight.iter().any(|(parcel, _, item)| *parcel == self.parcels && item.ticket == *ticket)
    }

    fn judge(&mut self, key: LaneKey, item: Item) -> Result<(), TestCaseError> {
        let ticket = item.ticket;
        let at = ticket.seq as usize - 1;
        prop_assert!(!self.settled[at], "{ticket:?} is sent a second time");
        prop_assert_eq!(
            item.history.attempts,
            self.attempts[at],
            "the attempts of {:?} are forgotten",
            ticket
        );
        for Unsettled { ticket: other, entry } in &self.log {
            let Entry::Record(record) = entry else { continue };
            let same = record.session() == item.record.session();
            if same && must_precede(other, &ticket) {
                let is_before = self.settled[other.seq as usize - 1] || self.is_in_this_parcel(other);
                let is_free = self.order == SessionOrder::Boundaries
                    && (other.kind, ticket.kind) == (Kind::Usage, Kind::Usage);
                prop_assert!(is_before || is_free, "{ticket:?} overtakes {other:?}");
            }
        }
        let quota = ticket.kind == Kind::Quota;
        let waits = |(parcel, _, other): &(u64, LaneKey, Item)| {
            let is_free = self.order == SessionOrder::Boundaries
                && (other.ticket.kind, ticket.kind) == (Kind::Usage, Kind::Usage);
            let same = other.record.session() == item.record.session();
            *parcel != self.parcels && !quota && other.ticket.kind != Kind::Quota && same && !is_free
        };
        prop_assert!(!self.in_flight.iter().any(waits), "a session is in two requests");
        self.in_flight.push((self.parcels, key, item));
        Ok(())
    }

    fn settle(&mut self, at: usize) {
        let (_, key, item) = self.in_flight.swap_remove(at);
        self.settled[item.ticket.seq as usize - 1] = true;
        self.lanes.settle(key, &item);
    }

    fn now(&self, epoch: Instant) -> Instant {
        epoch + Duration::from_secs(self.seconds)
    }

    fn run(&mut self, op: &Op, epoch: Instant) -> Result<(), TestCaseError> {
        match op {
            Op::Append { kind, session, count } => (0..*count).for_each(|_| self.append(*kind, *session)),
            Op::BeginRead => self.begin_read(),
            Op::EndRead => self.end_read(),
            Op::Pick { probe } => drop(self.pick(*probe)?),
            Op::Settle(which) if !self.in_flight.is_empty() => self.settle(which.index(self.in_flight.len())),
            Op::PutBack(which, delay) if !self.in_flight.is_empty() => {
                let (_, key, mut item) = self.in_flight.swap_remove(which.index(self.in_flight.len()));
                item.history.attempts += 1;
                self.attempts[item.ticket.seq as usize - 1] += 1;
                self.lanes.put_back(key, item, self.now(epoch) + Duration::from_secs(*delay));
            }
            Op::Tick => {
                self.seconds += 1;
                self.lanes.wake(self.now(epoch));
            }
            Op::Expire => {
                let old = self.log.len() as i64 / 2;
                for (key, item) in self.lanes.take_expired(old) {
                    prop_assert!(item.ticket.kind == Kind::Quota && item.ticket.accepted_at.0 < old);
                    self.in_flight.push((0, key, item));
                    self.settle(self.in_flight.len() - 1);
                }
            }
            Op::Hold(held) => self.lanes.hold(*held),
            Op::ProbeHeld(log) if self.lanes.has_held(*log) => {
                let parcel = self.lanes.pick_probe_of(*log, false).unwrap_or_default();
                prop_assert_eq!(records_in(&parcel), 1, "a held log can be probed");
                prop_assert!(parcel.iter().all(|group| group.items[0].ticket.log == *log));
                self.judge_parcel(parcel)?;
            }
            Op::Settle(_) | Op::PutBack(..) | Op::ProbeHeld(_) => {}
        }
        Ok(())
    }

    /// Runs without trouble until nothing changes any more.
    fn finish(&mut self, epoch: Instant) -> Result<(), TestCaseError> {
        self.seconds += 60;
        self.lanes.hold([false; LOGS.len()]);
        let mut idle = 0;
        while idle < 3 {
            let before =
                (self.settled.iter().filter(|settled| **settled).count(), self.read_ahead.positions());
            self.end_read();
            self.begin_read();
            self.lanes.wake(self.now(epoch));
            while self.pick(false)? {}
            while !self.in_flight.is_empty() {
                self.settle(0);
            }
            let after =
                (self.settled.iter().filter(|settled| **settled).count(), self.read_ahead.positions());
            idle = if before == after && self.reading.is_none() { idle + 1 } else { 0 };
        }
        let left: Vec<_> =
            self.log.iter().filter(|unsettled| !self.settled[unsettled.ticket.seq as usize - 1]).collect();
        prop_assert!(
            left.is_empty(),
            "never handed out: {:?}",
            left.iter().map(|l| l.ticket).collect::<Vec<_>>()
        );
        prop_assert_eq!(
            (KINDS.map(|kind| self.lanes.count(kind)), self.lanes.bytes(Kind::Usage)),
            ([0; 4], 0)
        );
        prop_assert!(self.lanes.lanes.is_empty(), "lanes without records remain");
        Ok(())
    }
}

/// Whether the first of one session's records must be settled before the second is sent.
fn must_precede(first: &Ticket, second: &Ticket) -> bool {
    let earlier = first.seq < second.seq;
    match (first.kind, second.kind) {
        (Kind::Started, Kind::Started | Kind::Usage | Kind::Completed)
        | (Kind::Usage, Kind::Usage | Kind::Completed)
        | (Kind::Completed, Kind::Completed) => earlier,
        _ => false,
    }
}

proptest! {
    #[test]
    fn every_record_is_sent_once_and_in_the_order_of_its_session(
        ops in prop::collection::vec(op(), 0..400),
        mode in 0..4_u8,
    ) {
        let epoch = Instant::now();
        let limits = BatchLimits { records: 5, bytes: 1 << 20, of_a_session: None, of_one_kind: mode == 3, pipes: 2 };
        let mut model = match mode {
            0 => Model::new(None, SessionOrder::Strict),
            1 => Model::new(None, SessionOrder::Boundaries),
            _ => Model::new(Some(limits), SessionOrder::Strict),
        };
        for op in &ops {
            model.run(op, epoch)?;
        }
        model.finish(epoch)?;
    }
}
