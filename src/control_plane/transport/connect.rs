//! Opens connections: name, address, proxy, TLS, and HTTP version.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::Uri;
use hyper::header::HeaderValue;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use url::Host;

use super::proxy::{self, Destination, Proxy, ProxyKind};
use super::socket::{Meter, Socket, TcpConnection};
use super::tls::Tls;
use crate::control_plane::credentials::ClientError;
use crate::control_plane::failure::{Failure, connecting};
use crate::control_plane::settings::{HttpVersion, Settings};

/// Reachable hosts complete a handshake well within this time, even on the worst links. At most half of a shorter time-out,
/// which distinguishes an unreachable host from one that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay after which the next address is tried in parallel (RFC 8305).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// Most addresses tried.
const ADDRESSES_MOST: usize = 16;
/// Unsent bytes in the kernel: data queued behind megabytes there is late, however urgent.
const UNSENT_MOST: u32 = 32 << 10;

/// Any stream that HTTP can use.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A stream that is ready for HTTP.
pub(super) struct Connected {
    pub(super) stream: Box<dyn ByteStream>,
    pub(super) tcp: Arc<TcpConnection>,
    pub(super) is_http2: bool,
}

/// Opens connections to one host.
pub(super) struct Connector {
    host: Host<String>,
    port: u16,
    tls: Option<(ServerName<'static>, Tls)>,
    proxy: Option<(Proxy, Option<(ServerName<'static>, Tls)>)>,
    http: HttpVersion,
    timeout: Duration,
    dscp: Option<u8>,
    meter: Arc<Meter>,
}

impl Connector {
    pub(super) fn new(
        settings: &Settings,
        target: &Uri,
        tls: Option<&Tls>,
        meter: Arc<Meter>,
    ) -> Result<Self, ClientError> {
        let host = Host::parse(target.host().unwrap_or_default())
            .map_err(|_| ClientError::Url("its host is invalid"))?;
        let is_https = target.scheme_str() == Some("https");
        let name = |host: &Host<String>| {
            let name = match host {
                Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned()).ok(),
                Host::Ipv4(ip) => Some(IpAddr::V4(*ip).into()),
                Host::Ipv6(ip) => Some(IpAddr::V6(*ip).into()),
            };
            name.ok_or(ClientError::Url("its host cannot have a certificate"))
        };
        let secured = |host: &Host<String>| {
            let tls =
                tls.cloned().ok_or_else(|| ClientError::Tls("no certificate authorities".to_owned()))?;
            Ok::<_, ClientError>((name(host)?, tls))
        };
        let proxy = match &settings.proxy {
            Some(settings) => {
                let proxy = Proxy::new(settings).map_err(ClientError::Proxy)?;
                let tls = (proxy.kind == ProxyKind::Https).then(|| secured(&proxy.host)).transpose()?;
                Some((proxy, tls))
            }
            None => None,
        };
        Ok(Self {
            port: target.port_u16().unwrap_or(if is_https { 443 } else { 80 }),
            tls: is_https.then(|| secured(&host)).transpose()?,
            host,
            proxy,
            http: settings.http,
            timeout: CONNECT_TIMEOUT.min(settings.timeout / 2),
            dscp: settings.dscp,
            meter,
        })
    }

    /// The longest time for opening a connection.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The HTTP version, if it is known before there is a connection.
    pub(super) fn is_http2(&self) -> Option<bool> {
        match (self.http, &self.tls) {
            (HttpVersion::Http1, _) | (HttpVersion::Auto, None) => Some(false),
            (HttpVersion::Http2, _) => Some(true),
            (HttpVersion::Auto, Some(_)) => None,
        }
    }

    /// Whether a proxy forwards requests, which must then contain the whole URL.
    pub(super) fn is_forwarded(&self) -> bool {
        let kind = self.proxy.as_ref().map(|(proxy, _)| proxy.kind);
        matches!(kind, Some(ProxyKind::Http | ProxyKind::Https)) && self.tls.is_none()
    }

    /// The credentials for such a proxy.
    pub(super) fn proxy_authorization(&self) -> Option<&HeaderValue> {
        self.proxy.as_ref().filter(|_| self.is_forwarded())?.0.basic.as_ref()
    }

    /// Opens a connection. Resolves the name each time.
    pub(super) async fn connect(&self, is_urgent: bool) -> Result<Connected, Failure> {
        let (host, port) = match &self.proxy {
            Some((proxy, _)) => (&proxy.host, proxy.port),
            None => (&self.host, self.port),
        };
        let addresses = resolve(host, port).await?;
        let stream = self.dial(&addresses).await.map_err(|e| Failure::Unreachable(e.to_string()))?;
        let tcp = Arc::new(TcpConnection::new(stream, Arc::clone(&self.meter)));
        tcp.set_urgent(is_urgent);
        let mut stream: Box<dyn ByteStream> = Box::new(Socket::new(Arc::clone(&tcp)));
        if let Some((proxy, tls)) = &self.proxy {
            if let Some((name, tls)) = tls {
                stream = Box::new(secure(stream, name, &tls.proxy).await?);
            }
            self.through(&mut stream, proxy).await?;
        }
        let mut is_http2 = self.http == HttpVersion::Http2;
        if let Some((name, tls)) = &self.tls {
            let secured = secure(stream, name, &tls.host).await?;
            is_http2 = secured.get_ref().1.alpn_protocol() == Some(b"h2");
            stream = Box::new(secured);
        }
        Ok(Connected { stream, tcp, is_http2 })
    }

    async fn through(&self, stream: &mut Box<dyn ByteStream>, proxy: &Proxy) -> Result<(), Failure> {
        match proxy.kind {
            ProxyKind::Http | ProxyKind::Https if self.tls.is_none() => Ok(()),
            ProxyKind::Http | ProxyKind::Https => {
                let authority = format!("{}:{}", self.host, self.port);
                proxy::connect(stream, &authority, proxy.basic.as_ref()).await
            }
            ProxyKind::Socks5 => {
                let address = resolve(&self.host, self.port).await?;
                let Some(address) = address.first() else { return Err(Failure::Dns("no address".into())) };
                proxy::socks5(stream, proxy, Destination::Address(address.ip()), self.port).await
            }
            ProxyKind::Socks5h => {
                let destination = match &self.host {
                    Host::Domain(name) => Destination::Name(name),
                    Host::Ipv4(ip) => Destination::Address(IpAddr::V4(*ip)),
                    Host::Ipv6(ip) => Destination::Address(IpAddr::V6(*ip)),
                };
                proxy::socks5(stream, proxy, destination, self.port).await
            }
        }
    }

    /// Connects to the first address that answers; each is tried in addition when the previous one has been silent for a
    /// while.
    async fn dial(&self, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
        let mut error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
        let mut attempts = FuturesUnordered::new();
        for address in addresses {
            attempts.push(self.open(*address));
            let first = timeout(NEXT_ADDRESS_AFTER, first_of(&mut attempts, &mut error)).await;
            if let Ok(Some(connected)) = first {
                return Ok(connected);
            }
        }
        first_of(&mut attempts, &mut error).await.ok_or(error)
    }

    async fn open(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        let options = SockRef::from(&socket);
        // Some kernels lack these options, and everything works without them.
        if let Err(error) = options.set_tcp_notsent_lowat(UNSENT_MOST) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT cannot be set");
        }
        if let Some(dscp) = self.dscp {
            let class = u32::from(dscp) << 2;
            let set =
                if address.is_ipv4() { options.set_tos_v4(class) } else { options.set_tclass_v6(class) };
            if let Err(error) = set {
                tracing::debug!(%error, dscp, "CONTROL_PLANE_DSCP cannot be set on a socket");
            }
        }
        socket.connect(address).await
    }
}

/// The first success; `None` if all attempts have failed, with the last error in `error`.
async fn first_of<F, T>(attempts: &mut FuturesUnordered<F>, error: &mut io::Error) -> Option<T>
where
    F: Future<Output = io::Result<T>>,
{
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(connected) => return Some(connected),
            Err(failed) => *error = failed,
        }
    }
    None
}

/// A host's addresses, alternating between the two families.
async fn resolve(host: &Host<String>, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let name = match host {
        Host::Ipv4(ip) => return Ok(vec![SocketAddr::new(IpAddr::V4(*ip), port)]),
        Host::Ipv6(ip) => return Ok(vec![SocketAddr::new(IpAddr::V6(*ip), port)]),
        Host::Domain(name) => name.as_str(),
    };
    let found = tokio::net::lookup_host((name, port)).await.map_err(|e| Failure::Dns(e.to_string()))?;
    let found: Vec<_> = found.collect();
    let first_is_v4 = found.first().is_some_and(SocketAddr::is_ipv4);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        found.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let mut addresses = Vec::new();
    while addresses.len() < ADDRESSES_MOST && !(first.is_empty() && second.is_empty()) {
        addresses.extend(first.pop_front());
        addresses.extend(second.pop_front());
    }
    if addresses.is_empty() {
        return Err(Failure::Dns("the host name has no address".to_owned()));
    }
    Ok(addresses)
}

async fn secure(
    stream: Box<dyn ByteStream>,
    name: &ServerName<'static>,
    config: &Arc<rustls::ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<Box<dyn ByteStream>>, Failure> {
    let connector = TlsConnector::from(Arc::clone(config));
    connector.connect(name.clone(), stream).await.map_err(|e| connecting(&e))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::control_plane::settings::Auth;
    use crate::secret::Secret;

    fn connector(dscp: Option<u8>) -> Connector {
        let settings = Settings {
            url: Secret::new("http://localhost"),
            timeout: Duration::from_secs(20),
            max_idle_connections: 1,
            server_id: "edge-1".into(),
            version: "1".into(),
            auth: Auth::ApiKey,
            api_key_header: "X-API-Key".into(),
            api_key: None,
            jwt_key: None,
            jwt_algorithm: None,
            jwt_key_id: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            http: HttpVersion::Auto,
            dscp,
            proxy: None,
        };
        let target = Uri::from_static("http://localhost");
        Connector::new(&settings, &target, None, Arc::default()).unwrap()
    }

    #[tokio::test]
    async fn sockets_carry_the_dscp_and_hold_little_back() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // Without IPv6 on the machine there is nothing to check.
            let Ok(listener) = TcpListener::bind(address).await else { continue };
            let address = listener.local_addr().unwrap();
            for (dscp, class) in [(None, 0), (Some(1), 4), (Some(46), 184)] {
                let stream = connector(dscp).open(address).await.unwrap();
                let socket = SockRef::from(&stream);
                let found = if address.is_ipv4() { socket.tos_v4() } else { socket.tclass_v6() };
                assert_eq!(found.unwrap(), class, "{address} {dscp:?}");
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_MOST);
                assert!(stream.nodelay().unwrap());
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_gives_way_to_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = [gone.local_addr().unwrap(), listener.local_addr().unwrap()];
        drop(gone);
        let stream = connector(None).dial(&addresses).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), addresses[1]);
        let error = connector(None).dial(&addresses[..1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connector(None).dial(&[]).await.is_err());
    }
}
