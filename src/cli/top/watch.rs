//! Polls the agents, each in its own task: none waits for another.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::snapshot::{Snapshot, Told};
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
            let mut tells = true;
            // Sending fails once the receiver has gone.
            while tell.send((n, look(&agent, &mut tells).await)).await.is_ok() {
                tokio::time::sleep(interval).await;
            }
        });
    }
    Watchers { looks, tasks }
}

/// Polls an agent once. `tells` becomes false when it does not tell its own figures, and it is not asked for them again: to
/// an unknown host name it gives health and metrics only, and logs anything else.
pub(super) async fn look(agent: &AdminClient, tells: &mut bool) -> AgentSample {
    let said = ask(agent, tells).await.map_err(|error| match error {
        AdminClientError::Nobody { .. } => "no answer".to_owned(),
        AdminClientError::Cut { .. } => "incomplete answer".to_owned(),
        AdminClientError::NotTrusted(_) => {
            "access denied: see the agent's TRUSTED_IPS and TRUSTED_HOSTS".to_owned()
        }
        _ => "not a dataplane-agent".to_owned(),
    });
    (since_start(), said)
}

async fn ask(agent: &AdminClient, tells: &mut bool) -> Result<Snapshot, AdminClientError> {
    let health = agent.read("/health", ANSWER_WITHIN).await?;
    let metrics = agent.read("/metrics", ANSWER_WITHIN).await?;
    let snapshot = Snapshot::of(&health, &metrics);
    let mut snapshot = snapshot.ok_or_else(|| AdminClientError::NotAnAgent(agent.to_string()))?;
    if *tells {
        match agent.read("/status", ANSWER_WITHIN).await {
            Ok(status) => snapshot.told = Told::of(&status),
            Err(AdminClientError::NotTrusted(_) | AdminClientError::NotAnAgent(_)) => *tells = false,
            // The next look will show it.
            Err(_) => {}
        }
    }
    Ok(snapshot)
}

/// Time since the start, for rates.
fn since_start() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}
