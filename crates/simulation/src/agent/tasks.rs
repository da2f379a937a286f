//! The agent's tasks: each is polled only while the agent is alive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use dataplane_agent::outbox::simulated::Died;

use crate::world::World;

/// How a task ended.
pub(super) enum TaskEnd {
    Ended(&'static str),
    Failed(String),
    /// The process died in the task.
    Died,
}

pub(super) type Task = Pin<Box<dyn Future<Output = TaskEnd>>>;

/// A task that is polled only while the agent is alive.
pub(super) struct Watched {
    pub(super) name: &'static str,
    pub(super) inner: Pin<Box<dyn Future<Output = Result<(), String>>>>,
    pub(super) world: World,
}

impl Future for Watched {
    type Output = TaskEnd;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<TaskEnd> {
        let dies = {
            let polls = &mut self.world.state().polls;
            polls.count += 1;
            polls.dies_at.is_some_and(|at| polls.count >= at)
        };
        if dies {
            return Poll::Ready(TaskEnd::Died);
        }
        let name = self.name;
        match catch_unwind(AssertUnwindSafe(|| self.inner.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(()))) => Poll::Ready(TaskEnd::Ended(name)),
            Ok(Poll::Ready(Err(error))) => Poll::Ready(TaskEnd::Failed(format!("{name}: {error}"))),
            Err(panic) if panic.is::<Died>() => Poll::Ready(TaskEnd::Died),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
                Poll::Ready(TaskEnd::Failed(format!("{name} panicked: {text}")))
            }
        }
    }
}
