//! A round from streams that lie apart, each in its own slot of a cluster: a script call a stream instead of one moment for
//! all, in an order that keeps what the drain relies on.
//!
//! * A session's `started` goes before its usage. Usage is read first, and the events after it: whatever was pushed before
//!   that usage is among them. Usage is held back until the events have been read to their end.
//! * `completed` goes behind the usage that was pushed before it. What of that is still in Redis is counted after the
//!   events have been read.
//!
//! What is held is in nobody's outbox. In a pause, which may be long, it is given up: another agent may claim it meanwhile, and
//! afterwards what is still this one's is read anew.

use super::{Given, Stream};
use crate::intake::SourceError;
use crate::intake::allowance::Allowance;
use crate::intake::source::Ask;

/// As in [`crate::intake::source::ORDER`].
const EVENTS: usize = 0;
const USAGE: usize = 1;
const QUOTA: usize = 2;

impl Stream {
    pub(super) async fn round_apart(
        &mut self,
        asks: &[Ask; 3],
        reclaims: bool,
        allowance: Allowance,
    ) -> Result<[Given; 3], SourceError> {
        let mut ask = asks[USAGE];
        if ask.want == 0 {
            self.give_up_held();
        }
        if !self.held.messages.is_empty() {
            ask.want = 0;
        }
        let [mut usage] = self.call(USAGE, [USAGE], [ask], reclaims, allowance).await?;
        self.held.messages.append(&mut usage.messages);
        self.held.digests.append(&mut usage.digests);
        let [quota] = self.call(QUOTA, [QUOTA], [asks[QUOTA]], reclaims, allowance).await?;
        let [events] = self.call(EVENTS, [EVENTS], [asks[EVENTS]], reclaims, allowance).await?;
        if !events.messages.is_empty() {
            let [now] = self.call(USAGE, [USAGE], [Ask::default()], false, allowance).await?;
            usage.left = now.left;
        }
        let is_complete =
            events.fault.is_some() || (events.left == 0 && self.readings[EVENTS].is_caught_up());
        if is_complete && asks[USAGE].want > 0 {
            let held = std::mem::take(&mut self.held);
            (usage.messages, usage.digests) = (held.messages, held.digests);
        } else {
            usage.left += self.held.messages.len() as u64;
        }
        Ok([events, usage, quota])
    }

    /// Forgets what is held. It stays pending in Redis, and is read again with all that was given before: of what lies
    /// between no more is known than that it is in hand.
    fn give_up_held(&mut self) {
        let held = std::mem::take(&mut self.held).messages.len();
        if held == 0 {
            return;
        }
        let reading = &mut self.readings[USAGE];
        // IMPORTANT: the last ones in hand: nothing is given out before what is held.
        for id in reading.in_hand.drain(reading.in_hand.len().saturating_sub(held)..) {
            reading.known.remove(&id);
        }
        reading.from = "0".into();
    }
}
