//! Polls the agents, each in its own task: none waits for another.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::snapshot::Snapshot;
use super::view::AgentSample;
use crate::cli::agent::{AdminClient, AdminClientError};

/// An agent that takes longer is offline: it answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// An agent's index and its answer.
pub(super) type Look = (usize, AgentSample);

/// The polling tasks. Dropping this ends them.
pub(super) struct Watchers {
    pub looks: mpsc::Receiver<Look>,
    pub tasks: JoinSet<()>,
}

pub(super) fn start(agents: Vec<AdminClient>, interval: Duration) -> Watchers {
    let (tell, looks) = mpsc::channel(64);
    let mut tasks = JoinSet::new();
    for (n, agent) in agents.into_iter().enumerate() {
        let tell = tell.clone();
        tasks.spawn(async move {
            // Sending fails once the receiver has gone.
            while tell.send((n, look(&agent).await)).await.is_ok() {
                tokio::time::sleep(interval).await;
            }
        });
    }
    Watchers { looks, tasks }
}

/// Polls an agent once.
pub(super) async fn look(agent: &AdminClient) -> AgentSample {
    let said = ask(agent).await.map_err(|error| match error {
        AdminClientError::Nobody { .. } => "no answer".to_owned(),
        AdminClientError::Cut { .. } => "incomplete answer".to_owned(),
        AdminClientError::NotTrusted(_) => {
            "access denied: see the agent's TRUSTED_IPS and TRUSTED_HOSTS".to_owned()
        }
        _ => "not a dataplane-agent".to_owned(),
    });
    (since_start(), said)
}

async fn ask(agent: &AdminClient) -> Result<Snapshot, AdminClientError> {
    let health = agent.read("/health", ANSWER_WITHIN).await?;
    let metrics = agent.read("/metrics", ANSWER_WITHIN).await?;
    Snapshot::of(&health, &metrics).ok_or_else(|| AdminClientError::NotAnAgent(agent.to_string()))
}

/// Time since the start, for rates.
fn since_start() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}
