//! A slow link in front of the `ControlPlane`'s port: round trip, rate, and a bounded queue, without root.
//!
//! Each direction is a line of its own. A chunk waits until the queue has room for it, like the bytes of a sender whose window
//! is closed. It is then sent after everything queued, at the line's rate, and arrives half a round trip later. All connections
//! share the line and wait for room in turn. The window limits the bytes of one connection in flight. A new connection carries
//! its first byte after one round trip, the time of a handshake.
//!
//! Not simulated: loss, packet headers, and TCP's slow start.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time,
};

mod line;
mod settings;

pub use settings::{BadLink, Settings};

use line::{Line, Queued, Traffic};

/// Bytes in a socket that have not entered the link: more would hide the queue from the sender.
pub(super) const SOCKET_BUFFER: u32 = 32 << 10;

/// A link that connections are carried over.
pub(super) struct Link {
    settings: watch::Sender<Settings>,
    up: Way,
    down: Way,
}

/// One direction.
struct Way {
    /// Held by the sender that waits for room; others queue for it, first come, first served.
    line: Mutex<Line>,
    settings: watch::Receiver<Settings>,
}

/// A chunk in flight.
struct Chunk {
    arrives: Instant,
    /// Empty at the end of the stream.
    bytes: Bytes,
    _window: Option<OwnedSemaphorePermit>,
}

/// A link's settings and traffic.
#[derive(Serialize)]
pub(super) struct Report {
    link: String,
    up: Traffic,
    down: Traffic,
}

impl Link {
    pub(super) fn new(settings: Settings) -> Self {
        let settings = watch::Sender::new(settings);
        let way = || Way { line: Mutex::new(Line::new(Instant::now())), settings: settings.subscribe() };
        Self { up: way(), down: way(), settings }
    }

    /// Applies to new chunks; those in flight arrive as scheduled.
    pub(super) fn set(&self, settings: Settings) {
        self.settings.send_replace(settings);
    }

    pub(super) async fn report(&self) -> Report {
        let link = self.settings.borrow().to_string();
        Report { link, up: self.up.line.lock().await.traffic(), down: self.down.line.lock().await.traffic() }
    }

    /// Resets the counters.
    pub(super) async fn reset(&self) {
        self.up.line.lock().await.reset();
        self.down.line.lock().await.reset();
    }

    /// Carries one connection until the server has closed it or the client has gone.
    pub(super) async fn carry(&self, client: TcpStream, server: DuplexStream) {
        let connected = Instant::now() + self.settings.borrow().rtt;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = tokio::io::split(server);
        let up = async {
            time::sleep_until(connected.into()).await;
            self.up.carry(from_client, to_server).await;
            // The client has finished sending; the server's answer may still be in flight.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = up => {}
            () = self.down.carry(from_server, to_client) => {}
        }
    }
}

impl Way {
    /// Carries `source` to `sink`, including its end.
    async fn carry(&self, mut source: impl AsyncRead + Unpin, mut sink: impl AsyncWrite + Unpin) {
        let window = Arc::new(Semaphore::new(self.settings.borrow().window));
        // Bounded by the window.
        let (under_way, mut arriving) = mpsc::unbounded_channel::<Chunk>();
        let take = async move {
            let mut buffer = vec![0; settings::MAX_CHUNK];
            loop {
                let most = self.settings.borrow().chunk();
                let Ok(mut permit) = Arc::clone(&window).acquire_many_owned(most as u32).await else { break };
                let read = source.read(&mut buffer[..most]).await.unwrap_or_default();
                let bytes = Bytes::copy_from_slice(&buffer[..read]);
                let arrives = self.enter(read).await;
                let chunk = Chunk { arrives, bytes, _window: permit.split(read) };
                if under_way.send(chunk).is_err() || read == 0 {
                    break;
                }
            }
        };
        let give = async {
            while let Some(chunk) = arriving.recv().await {
                time::sleep_until(chunk.arrives.into()).await;
                if chunk.bytes.is_empty() || sink.write_all(&chunk.bytes).await.is_err() {
                    break;
                }
            }
            // If this fails, nobody is left to tell.
            let _ = sink.shutdown().await;
        };
        let mut take = std::pin::pin!(take);
        let mut give = std::pin::pin!(give);
        tokio::select! {
            () = &mut give => {}
            () = &mut take => give.await,
        }
    }

    /// Waits until the queue has room for these bytes. Returns their arrival time.
    async fn enter(&self, bytes: usize) -> Instant {
        let mut settings = self.settings.clone();
        let mut line = self.line.lock().await;
        loop {
            let entry = line.enter(bytes, &settings.borrow_and_update(), Instant::now());
            match entry {
                Queued::Arrives(at) => return at,
                Queued::FullUntil(at) => tokio::select! {
                    () = time::sleep_until(at.into()) => {}
                    _ = settings.changed() => {}
                },
            }
        }
    }
}
