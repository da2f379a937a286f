//! A port that can be taken away, connections and all, and given back.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, time::Duration};

use axum::{Router, extract::Request, response::Response};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};

/// How long a connection may be idle, or take to send a request's head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// What a request in flight gets to finish in when the sandbox ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Between two attempts to accept, or to take the port back, after one failed.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// What a listener is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Serve.
    Open,
    /// Close the port, cut the connections, wait.
    Down,
    /// Finish what is in flight and end.
    Closing,
}

/// Put into a response's extensions, it closes the connection instead of sending the response.
#[derive(Clone, Copy)]
pub(super) struct Cut;

/// Ends a connection without an answer; nobody ever reads it.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct ConnectionCut;

/// One address that is served.
pub(super) struct Listener {
    address: SocketAddr,
    socket: Option<TcpListener>,
}

impl Listener {
    pub(super) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self { address: socket.local_addr()?, socket: Some(socket) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the phase is [`Phase::Closing`]. `listening` follows what the port really is, `accepted` is
    /// called for every connection.
    pub(super) async fn serve(
        mut self,
        app: Router,
        mut phase: watch::Receiver<Phase>,
        listening: watch::Sender<bool>,
        accepted: impl Fn(),
    ) {
        let mut connections = JoinSet::new();
        let app = TowerToHyperService::new(app);
        loop {
            let now = *phase.borrow_and_update();
            match (now, &self.socket) {
                (Phase::Closing, _) => break,
                (Phase::Down, _) => {
                    self.socket = None;
                    connections.shutdown().await;
                    listening.send_replace(false);
                    if phase.changed().await.is_err() {
                        break;
                    }
                }
                (Phase::Open, None) => match TcpListener::bind(self.address).await {
                    Ok(socket) => self.socket = Some(socket),
                    Err(error) => {
                        tracing::warn!(%error, address = %self.address, "the port cannot be taken back yet");
                        time::sleep(RETRY_DELAY).await;
                    }
                },
                (Phase::Open, Some(socket)) => {
                    listening.send_replace(true);
                    tokio::select! {
                        stream = socket.accept() => match stream {
                            Ok((stream, _)) => {
                                accepted();
                                connections.spawn(converse(stream, app.clone(), phase.clone()));
                            }
                            Err(error) => {
                                tracing::warn!(%error, "a connection could not be accepted");
                                time::sleep(RETRY_DELAY).await;
                            }
                        },
                        Some(_) = connections.join_next() => {}
                        changed = phase.changed() => if changed.is_err() { break },
                    }
                }
            }
        }
        // No new connection from here on; each of the old ones ends within its grace.
        self.socket = None;
        while connections.join_next().await.is_some() {}
    }
}

/// One connection, until either side closes it.
async fn converse(stream: TcpStream, app: TowerToHyperService<Router>, mut phase: watch::Receiver<Phase>) {
    // Only a delay is lost where this fails.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = app.call(request);
        async move { cut_or_send(answer.await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let closing = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
    };
    tokio::select! {
        // How a client leaves is its own affair.
        _ = connection.as_mut() => return,
        () = closing => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = time::timeout(SHUTDOWN_GRACE, connection).await;
}

fn cut_or_send(answer: Result<Response, Infallible>) -> Result<Response, ConnectionCut> {
    let Ok(response) = answer;
    if response.extensions().get::<Cut>().is_some() { Err(ConnectionCut) } else { Ok(response) }
}
