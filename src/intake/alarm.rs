//! What wakes the intake when all queues are empty: commands that block until something comes.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use redis::{RedisError, RedisResult, Value};

use super::connection::{Connection, connect};
use super::fault::is_refusal;
use super::source::Source;
use super::{BLOCK, Settings};

/// A command that is refused is tried again so often; meanwhile rounds look at the same interval.
pub(super) const REFUSED: Duration = Duration::from_secs(1);

type Waiting = Pin<Box<dyn Future<Output = RedisResult<Option<Value>>> + Send>>;

/// A connection for each command.
pub(super) struct Alarm {
    bells: Vec<Bell>,
}

struct Bell {
    connection: Connection,
    waiting: Option<Waiting>,
    /// What Redis has against the command.
    refused: Option<RedisError>,
}

impl Alarm {
    pub(super) async fn open(settings: &Settings, source: &Source) -> RedisResult<Self> {
        let mut bells = Vec::new();
        for _ in source.alarms() {
            let connection = connect(settings, BLOCK).await?;
            bells.push(Bell { connection, waiting: None, refused: None });
        }
        Ok(Self { bells })
    }

    /// Starts waiting, where it does not already.
    pub(super) fn arm(&mut self, source: &Source) {
        if self.bells.iter().all(|bell| bell.waiting.is_some()) {
            return;
        }
        for (bell, command) in self.bells.iter_mut().zip(source.alarms()) {
            if bell.waiting.is_none() {
                let mut connection = bell.connection.clone();
                bell.waiting =
                    Some(Box::pin(
                        async move { command.query_async::<Value>(&mut connection).await.map(Some) },
                    ));
            }
        }
    }

    /// Done when something may have come: a round has to look. Also after a while in which nothing came, which keeps
    /// the measurements fresh and notices a dead connection.
    pub(super) async fn rung(&mut self) -> RedisResult<()> {
        std::future::poll_fn(|context| {
            for bell in &mut self.bells {
                let Some(waiting) = &mut bell.waiting else { continue };
                let Poll::Ready(answer) = waiting.as_mut().poll(context) else { continue };
                bell.waiting = None;
                match answer {
                    Ok(Some(_)) => bell.refused = None,
                    Ok(None) => {}
                    // Out of memory, a wrong type, no permission: the rounds go on, and asking at once again would spin.
                    Err(error) if is_refusal(&error) => {
                        bell.refused = Some(error);
                        bell.waiting = Some(Box::pin(async {
                            tokio::time::sleep(REFUSED).await;
                            Ok(None)
                        }));
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        })
        .await
    }

    /// What Redis has against being waited on, if anything.
    pub(super) fn refused(&self) -> Option<&RedisError> {
        self.bells.iter().find_map(|bell| bell.refused.as_ref())
    }
}
