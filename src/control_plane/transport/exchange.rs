//! One request and its answer over a connection: progress, and the limit of an answer.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout_at};

use crate::control_plane::failure::{Failure, classify};

/// A body is passed on in pieces of this size, so that lower layers do not copy all of it.
const PIECE: usize = 16 << 10;

/// After the time-out, an answer slower than this makes no progress.
const ANSWER_BYTES_PER_SECOND_LEAST: u64 = 1 << 10;

/// A request's body being sent.
pub(super) struct Upload {
    rest: Bytes,
    progress: UploadProgress,
}

/// When the last piece of a body was requested.
#[derive(Clone, Debug)]
pub(super) struct UploadProgress {
    begun: Instant,
    nanoseconds: Arc<AtomicU64>,
}

impl Upload {
    pub(super) fn new(body: Bytes) -> Self {
        Self { rest: body, progress: UploadProgress { begun: Instant::now(), nanoseconds: Arc::default() } }
    }

    pub(super) fn progress(&self) -> UploadProgress {
        self.progress.clone()
    }
}

impl UploadProgress {
    pub(super) fn at(&self) -> Instant {
        self.begun + Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let since = self.progress.begun.elapsed().as_nanos() as u64;
        self.progress.nanoseconds.store(since, Ordering::Relaxed);
        let piece = self.rest.len().min(PIECE);
        Poll::Ready((piece > 0).then(|| Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// The output of `work`; `None` if nothing has progressed for `patience`.
pub(super) async fn while_progressing<F: Future>(
    work: F,
    progressed_at: impl Fn() -> Instant,
    patience: Duration,
) -> Option<F::Output> {
    let mut work = pin!(work);
    loop {
        let until = progressed_at() + patience;
        match timeout_at(until, work.as_mut()).await {
            Ok(output) => return Some(output),
            Err(_) if progressed_at() + patience > until => {}
            Err(_) => return None,
        }
    }
}

/// Reads an answer's body up to the limit, and no further. Says whether there was more.
pub(super) async fn read_body(
    mut body: Incoming,
    max: usize,
    patience: Duration,
) -> Result<(Bytes, bool), Failure> {
    let begun = Instant::now();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    loop {
        let read = (first.len() + rest.len()) as u64;
        let at_least = Duration::from_secs(read / ANSWER_BYTES_PER_SECOND_LEAST);
        let until = (Instant::now() + patience).min(begun + patience + at_least);
        let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let Ok(next) = timeout_at(until, next).await else {
            return Err(Failure::Timeout { connected: true });
        };
        let Some(frame) = next else { break };
        let Ok(data) = frame.map_err(|e| classify(&e))?.into_data() else { continue };
        // Nearly every answer is one piece, which is passed on without a copy.
        if first.is_empty() && rest.is_empty() && data.len() <= max {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        let room = max - rest.len();
        rest.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            return Ok((rest.freeze(), true));
        }
    }
    Ok((if rest.is_empty() { first } else { rest.freeze() }, false))
}
