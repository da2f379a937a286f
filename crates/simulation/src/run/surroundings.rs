//! What happens around the agent: producers push, and faults begin.

use std::sync::Arc;

use dataplane_agent::intake::SourceMode;

use crate::agent::QUEUES;
use crate::plan::What;
use crate::world::{World, queue_of};

/// Pushes the planned messages.
pub(super) async fn produce(world: World) {
    let count = world.state().records.len();
    for number in 0..count {
        let (at, now) = {
            let state = world.state();
            (state.records[number].push.at, state.now())
        };
        tokio::time::sleep(at.saturating_sub(now)).await;
        let mut state = world.state();
        if state.is_over {
            return;
        }
        let now = state.now();
        state.records[number].pushed_at = Some(now);
        state.pushed += 1;
        let queue = QUEUES[queue_of(&state.records[number].push) as usize];
        let message = state.records[number].message.clone();
        match state.plan.settings.source {
            SourceMode::List => state.redis.push(queue, message),
            SourceMode::Stream => state.redis.add(queue, message),
        }
        let name = state.records[number].transaction.clone();
        state.note(&format!("pushed {name}"));
    }
}

/// Applies the immediate effects of faults when they begin.
pub(super) async fn strike(world: World) {
    let plan = Arc::clone(&world.state().plan);
    let mut order: Vec<usize> = (0..plan.faults.len()).collect();
    order.sort_by_key(|n| plan.faults[*n].from);
    for n in order {
        let now = world.state().now();
        tokio::time::sleep(plan.faults[n].from.saturating_sub(now)).await;
        let mut state = world.state();
        state.note(&format!("begins {:?}", plan.faults[n].what));
        match plan.faults[n].what {
            What::ClockJumps(seconds) => state.clock_offset += seconds * 1_000_000,
            What::RedisRestart => state.redis.restart(),
            _ => {}
        }
    }
}
