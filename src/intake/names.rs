//! The names of the keys.

use super::address::hash_tag;
use super::source::ORDER;
use crate::record::Queue;

/// The names of the keys.
#[derive(Clone, Debug)]
pub struct Names {
    /// Usage records.
    pub usage: String,
    /// Lifecycle events.
    pub lifecycle: String,
    /// Quota refresh requests.
    pub quota: String,
    /// Answers to quota refresh requests.
    pub quota_response: String,
    /// The mirror of dead letters.
    pub dead_letters: String,
    /// The owner of these in-flight lists.
    pub server_id: String,
}

impl Names {
    /// The queue's name.
    pub fn queue(&self, queue: Queue) -> &str {
        match queue {
            Queue::Usage => &self.usage,
            Queue::Lifecycle => &self.lifecycle,
            Queue::Quota => &self.quota,
        }
    }

    /// This agent's in-flight list.
    pub fn in_flight(&self, queue: Queue) -> String {
        self.in_flight_of(queue, &self.server_id)
    }

    /// An agent's in-flight list.
    pub(super) fn in_flight_of(&self, queue: Queue, server_id: &str) -> String {
        format!("{}:processing:{server_id}", self.queue(queue))
    }

    /// The counter of messages that this agent has acknowledged.
    pub(super) fn acked(&self, queue: Queue) -> String {
        format!("{}:acked:{}", self.queue(queue), self.server_id)
    }

    /// Messages too large to fetch; `is_apart`: in the queue's slot of a cluster.
    pub(super) fn oversize(&self, queue: Queue, is_apart: bool) -> String {
        let queue = self.queue(queue);
        if is_apart { format!("{}:oversize", beside(queue)) } else { format!("{queue}:oversize") }
    }

    /// The destination of an agent's blocking command: never a list, so nothing is moved.
    pub(super) fn wakeup_of(&self, queue: Queue, server_id: &str) -> String {
        format!("{}:wakeup:{server_id}", self.queue(queue))
    }

    /// The lease of an agent's ID.
    pub(super) fn lease(&self, server_id: &str) -> String {
        format!("{}:lease:{server_id}", self.usage)
    }

    /// When each agent was last seen.
    pub(super) fn agents(&self) -> String {
        format!("{}:agents", self.usage)
    }

    /// The keys of the lease, if every script may use every key.
    pub(super) fn lease_keys(&self) -> LeaseKeys {
        LeaseKeys { lease: self.lease(&self.server_id), agents: self.agents() }
    }

    /// The keys of all leases: one, or one per queue in its slot.
    pub(super) fn leases(&self, is_apart: bool) -> Vec<LeaseKeys> {
        if is_apart { self.lease_keys_apart().into() } else { vec![self.lease_keys()] }
    }

    /// The keys of a lease for each queue, in the order of [`ORDER`], in the queue's slot of a cluster.
    pub(super) fn lease_keys_apart(&self) -> [LeaseKeys; 3] {
        ORDER.map(|queue| {
            let queue = beside(self.queue(queue));
            LeaseKeys {
                lease: format!("{queue}:lease:{}", self.server_id),
                agents: format!("{queue}:agents"),
            }
        })
    }
}

/// The keys of a lease.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeaseKeys {
    pub lease: String,
    pub agents: String,
}

/// The prefix of names in the same slot as this name: the name itself if it contains a hash tag, otherwise the name in
/// braces.
pub(super) fn beside(name: &str) -> String {
    if hash_tag(name).is_some() { name.to_owned() } else { format!("{{{name}}}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_in_the_slot_of_its_stream() {
        let names = Names {
            usage: "usage".into(),
            lifecycle: "queue:{edge}:events".into(),
            quota: "q".into(),
            quota_response: "r".into(),
            dead_letters: "d".into(),
            server_id: "a".into(),
        };
        let [lifecycle, usage, _] = names.lease_keys_apart();
        assert_eq!(lifecycle.lease, "queue:{edge}:events:lease:a");
        assert_eq!(usage.agents, "{usage}:agents");
        assert_eq!(hash_tag(&usage.lease), Some("usage"));
        assert_eq!(names.oversize(Queue::Usage, true), "{usage}:oversize");
        assert_eq!(names.oversize(Queue::Usage, false), "usage:oversize");
        assert_eq!(names.oversize(Queue::Lifecycle, true), "queue:{edge}:events:oversize");
    }
}
