//! Executes commands through the same operator as `/admin`, and builds their results.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::CommandExecutor;
use super::order::Order;
use crate::admin::{Actor, Selection, chain};

/// Pages of 500 dead letters that one command may replay; its result says where to continue.
const PAGES: usize = 20;
/// Key names reported.
const NAMES: usize = 16;

impl CommandExecutor {
    /// Executes a command. The result must be small: it is kept until it is reported.
    pub(super) async fn carry_out(
        &mut self,
        order: Order,
        by: &Actor,
        received: Instant,
    ) -> Result<Value, String> {
        match order {
            Order::RefreshPublicKeys => self.refresh_keys(received).await,
            Order::HealthCheck => Ok(self.health()),
            Order::GetMetrics => Ok(self.agent_metrics.metrics(&mut self.load)),
            Order::PauseDrain => {
                self.operator.pause(by).await;
                Ok(self.drain())
            }
            Order::ResumeDrain => {
                self.operator.resume(by).await;
                Ok(self.drain())
            }
            Order::SetRateLimit(limit) => {
                self.operator.set_rate_limit(by, limit).await;
                Ok(self.drain())
            }
            Order::SetBandwidth(limit) => {
                self.operator.set_bandwidth(by, limit).await;
                Ok(self.drain())
            }
            Order::SetLogLevel(level) => {
                self.operator.set_log_level(by, level).await;
                Ok(json!({"level": level}))
            }
            Order::ReplayDeadLetters(selection) => self.replay(by, selection).await,
            Order::ReloadConfiguration => match self.operator.reload(by).await {
                Ok(need_restart) => Ok(json!({"need_restart": need_restart})),
                Err(error) => Err(chain(&error)),
            },
        }
    }

    async fn refresh_keys(&mut self, received: Instant) -> Result<Value, String> {
        let names = self.keys.refresh(&self.client, &self.admission, received).await;
        let names = names.map_err(|error| error.to_string())?;
        Ok(json!({"keys": names.len(), "key_ids": names.iter().flatten().take(NAMES).collect::<Vec<_>>()}))
    }

    fn drain(&self) -> Value {
        json!(self.operator.drain())
    }

    fn health(&self) -> Value {
        let stats = self.operator.outbox.durable_stats();
        json!({
            "status": self.agent_metrics.status(),
            "redis_connected": self.agent_metrics.redis.borrow().connected,
            "outbox": {
                "accepting": stats.accepting,
                "reason": stats.paused,
                "depth": stats.total_depth(),
                "disk_bytes": stats.disk_bytes,
                "counted_bytes": stats.counted_bytes,
                "capacity_bytes": stats.capacity_bytes,
                "dead_letters": stats.dead_letters,
                "quarantined_segments": stats.quarantined_segments,
            },
            "drain": self.drain(),
            "uptime_seconds": self.agent_metrics.started.elapsed().as_secs(),
        })
    }

    /// Replays page by page: no single request takes long.
    async fn replay(&self, by: &Actor, selection: Selection) -> Result<Value, String> {
        let (mut replayed, mut not_records, mut unknown) = (0, 0, 0);
        let mut next = Some(selection);
        for _ in 0..PAGES {
            let Some(selection) = next.take() else { break };
            let outcome = self
                .operator
                .replay(by, selection)
                .await
                .map_err(|error| format!("{}; {replayed} had been replayed", chain(&error)))?;
            replayed += outcome.replayed.len();
            not_records += outcome.not_records.len();
            unknown += outcome.unknown.len();
            if let Some(error) = outcome.error {
                return Err(format!("{error}; {replayed} had been replayed"));
            }
            next = outcome.next;
        }
        Ok(json!({"replayed": replayed, "not_records": not_records, "unknown": unknown, "next": next}))
    }
}
