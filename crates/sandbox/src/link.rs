//! A slow link in front of the `ControlPlane`'s port: round trip, rate, and a bounded queue, without root.
//!
//! Each way is a line of its own. A chunk of bytes waits until the queue has room for it, as the bytes of a sender do
//! whose window is closed; then it is sent behind all that is queued, at the line's rate, and arrives half a round trip
//! later. All connections share the line, and those that wait for room get it in turn. What one connection may have
//! under way is its window. A new connection carries its first byte after one round trip, as a handshake takes.
//!
//! What it does not have: loss, the headers of packets, and TCP's slow start.

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

/// What a socket may hold of what has not entered the link: more would hide the queue from its sender.
pub(super) const SOCKET_BUFFER: u32 = 32 << 10;

/// A link that connections are carried over.
pub(super) struct Link {
    settings: watch::Sender<Settings>,
    up: Way,
    down: Way,
}

/// One of the two directions.
struct Way {
    /// Whoever waits for room holds it: the others come after, first come, first served.
    line: Mutex<Line>,
    settings: watch::Receiver<Settings>,
}

/// A chunk under way.
struct Chunk {
    arrives: Instant,
    /// None at the end.
    bytes: Bytes,
    _window: Option<OwnedSemaphorePermit>,
}

/// What a link is set to, and what it has carried.
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

    /// From now on; what is under way arrives when it would have.
    pub(super) fn set(&self, settings: Settings) {
        self.settings.send_replace(settings);
    }

    pub(super) async fn report(&self) -> Report {
        let link = self.settings.borrow().to_string();
        Report { link, up: self.up.line.lock().await.traffic(), down: self.down.line.lock().await.traffic() }
    }

    /// Counts anew.
    pub(super) async fn reset(&self) {
        self.up.line.lock().await.reset();
        self.down.line.lock().await.reset();
    }

    /// Carries one connection, until its server has closed it or its client is gone.
    pub(super) async fn carry(&self, client: TcpStream, server: DuplexStream) {
        let connected = Instant::now() + self.settings.borrow().rtt;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = tokio::io::split(server);
        let up = async {
            time::sleep_until(connected.into()).await;
            self.up.carry(from_client, to_server).await;
            // Its client has said all that it has to say; the server's answer may still be under way.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = up => {}
            () = self.down.carry(from_server, to_client) => {}
        }
    }
}

impl Way {
    /// Carries all of `source` to `sink`, and its end.
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
            // Nobody is left to tell where this fails.
            let _ = sink.shutdown().await;
        };
        let mut take = std::pin::pin!(take);
        let mut give = std::pin::pin!(give);
        tokio::select! {
            () = &mut give => {}
            () = &mut take => give.await,
        }
    }

    /// Waits until the queue has room for so many bytes. Gives when they arrive.
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
