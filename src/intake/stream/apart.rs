//! A round over streams in different slots of a cluster: one script call per stream instead of one atomic snapshot, in an
//! order that preserves what the drain relies on.
//!
//! * A session's `started` precedes its usage. Usage is read first and events after it, so the events include everything
//!   pushed before that usage. Usage is held back until the events have been read to their end.
//! * `completed` follows the usage pushed before it. The part of that usage still in Redis is counted after the events have
//!   been read.
//!
//! Held usage is in no outbox. During a pause, which may be long, it is released: another agent may claim it, and what
//! remains is read again afterwards.

use super::{Given, Stream};
use crate::intake::SourceError;
use crate::intake::allowance::Allowance;
use crate::intake::source::Ask;

/// Indices, as in [`crate::intake::source::ORDER`].
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

    /// Forgets held usage. It stays pending in Redis, and is read again with all earlier deliveries; of the entries in
    /// between only the fact that they are in hand is known.
    fn give_up_held(&mut self) {
        let held = std::mem::take(&mut self.held).messages.len();
        if held == 0 {
            return;
        }
        let reading = &mut self.readings[USAGE];
        // IMPORTANT: held entries are the last ones in hand: nothing is delivered while usage is held.
        for id in reading.in_hand.drain(reading.in_hand.len().saturating_sub(held)..) {
            reading.known.remove(&id);
        }
        reading.from = "0".into();
    }
}
