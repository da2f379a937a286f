//! A port that can be closed, connections included, and reopened.

use std::{convert::Infallible, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

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
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time,
};

use super::link::{Link, SOCKET_BUFFER};

/// Maximum time for a connection to be idle or to send a request's head.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Time for requests in flight to finish when the sandbox ends.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed attempt to accept or to rebind the port.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Bytes buffered between the link's end and the server.
const LINK_BUFFER: usize = 64 << 10;

/// The target state of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Serve.
    Open,
    /// Close the port, cut the connections, wait.
    Down,
    /// Finish requests in flight, then end.
    Closing,
}

/// In a response's extensions, closes the connection instead of sending the response.
#[derive(Clone, Copy)]
pub(super) struct Cut;

/// Ends a connection without an answer. The text is never shown.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
struct ConnectionCut;

/// One served address.
pub(super) struct Listener {
    address: SocketAddr,
    /// The link that carries every connection, if any.
    link: Option<Arc<Link>>,
    socket: Option<TcpListener>,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr, link: Option<Arc<Link>>) -> io::Result<Self> {
        let socket = listen(address, link.is_some())?;
        Ok(Self { address: socket.local_addr()?, link, socket: Some(socket) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the phase is [`Phase::Closing`]. `listening` follows the port's actual state; `accepted` is called for
    /// every connection.
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
                (Phase::Open, None) => match listen(self.address, self.link.is_some()) {
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
                                let link = self.link.clone();
                                connections.spawn(connection(stream, link, app.clone(), phase.clone()));
                            }
                            Err(error) => {
                                tracing::warn!(%error, "cannot accept a connection");
                                time::sleep(RETRY_DELAY).await;
                            }
                        },
                        Some(_) = connections.join_next() => {}
                        changed = phase.changed() => if changed.is_err() { break },
                    }
                }
            }
        }
        // No new connections from here on; existing ones end within the grace period.
        self.socket = None;
        while connections.join_next().await.is_some() {}
    }
}

/// Binds a port. Behind a link, sockets buffer little, so connections wait for the link.
fn listen(address: SocketAddr, behind_link: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    if behind_link {
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves one connection, over the link if there is one.
async fn connection(
    stream: TcpStream,
    link: Option<Arc<Link>>,
    app: TowerToHyperService<Router>,
    mut phase: watch::Receiver<Phase>,
) {
    // A failure only costs a delay.
    let _ = stream.set_nodelay(true);
    let Some(link) = link else { return converse(stream, app, phase).await };
    let (far, near) = tokio::io::duplex(LINK_BUFFER);
    let mut carried = pin!(link.carry(stream, far));
    let conversation = converse(near, app, phase.clone());
    tokio::select! {
        () = &mut carried => return,
        () = conversation => {}
    }
    // The last answer is still in flight.
    let closing = async {
        let _ = phase.wait_for(|phase| *phase == Phase::Closing).await;
        time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        () = carried => {}
        () = closing => {}
    }
}

/// Answers a client's requests until either side closes the connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    app: TowerToHyperService<Router>,
    mut phase: watch::Receiver<Phase>,
) {
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
        // It does not matter how a client disconnects.
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
