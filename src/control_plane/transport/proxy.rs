//! Connects through a proxy: `CONNECT` for HTTPS, SOCKS5 for anything.

use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use url::{Host, Url};

use crate::control_plane::failure::Failure;
use crate::control_plane::settings::ProxySettings;

/// Most bytes read of a proxy's answer to `CONNECT`.
const HEAD_MAX_BYTES: usize = 16 << 10;

/// A proxy, ready for use by connections.
#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) kind: ProxyKind,
    pub(super) host: Host<String>,
    pub(super) port: u16,
    /// Its user info as Basic authentication, for `Proxy-Authorization`.
    pub(super) basic: Option<HeaderValue>,
    user: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyKind {
    /// Speaks HTTP.
    Http,
    /// Speaks HTTP over TLS.
    Https,
    /// Speaks SOCKS5, with addresses resolved here.
    Socks5,
    /// Speaks SOCKS5, and resolves names itself.
    Socks5h,
}

impl Proxy {
    /// Errors never quote the URL: it may contain a password.
    pub(super) fn new(settings: &ProxySettings) -> Result<Self, &'static str> {
        let url = Url::parse(settings.url.expose()).map_err(|_| "not a URL")?;
        let (kind, usual_port) = match url.scheme() {
            "http" => (ProxyKind::Http, 80),
            "https" => (ProxyKind::Https, 443),
            "socks5" => (ProxyKind::Socks5, 1080),
            "socks5h" => (ProxyKind::Socks5h, 1080),
            _ => return Err("not a proxy scheme"),
        };
        let host = Host::parse(url.host_str().unwrap_or_default()).map_err(|_| "it has no host")?;
        let decoded = |text| percent_decode_str(text).collect::<Vec<u8>>();
        let user = (!url.username().is_empty() || url.password().is_some())
            .then(|| (decoded(url.username()), decoded(url.password().unwrap_or_default())));
        let basic = user.as_ref().map(|(name, password)| basic(name, password)).transpose()?;
        Ok(Self { kind, host, port: url.port().unwrap_or(usual_port), basic, user })
    }
}

/// Basic authentication, marked as sensitive.
pub(in crate::control_plane) fn basic(name: &[u8], password: &[u8]) -> Result<HeaderValue, &'static str> {
    let encoded = STANDARD.encode([name, b":", password].concat());
    let mut value = HeaderValue::try_from(format!("Basic {encoded}"))
        .map_err(|_| "its user name or password cannot be sent")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Requests a tunnel to `authority` (`host:port`) from an HTTP proxy.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    authority: &str,
    basic: Option<&HeaderValue>,
) -> Result<(), Failure> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(basic) = basic {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(basic.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(|e| refused(&e))?;
    let mut head = Vec::new();
    // Byte by byte: data after the headers belongs to the host.
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() >= HEAD_MAX_BYTES {
            return Err(Failure::Unreachable("the proxy's answer is too long".to_owned()));
        }
        head.push(stream.read_u8().await.map_err(|e| refused(&e))?);
    }
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    match line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)) {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        Some("407") => Err(Failure::Unreachable("the proxy rejects the credentials (407)".to_owned())),
        Some(status) if status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(Failure::Unreachable(format!("the proxy refuses the tunnel with status {status}")))
        }
        _ => Err(Failure::Unreachable("the proxy does not speak HTTP".to_owned())),
    }
}

/// The destination of a SOCKS5 connection.
pub(super) enum Destination<'a> {
    Name(&'a str),
    Address(IpAddr),
}

/// Requests a connection from a SOCKS5 proxy (RFC 1928, 1929).
pub(super) async fn socks5(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    destination: Destination<'_>,
    port: u16,
) -> Result<(), Failure> {
    let user = proxy.user.as_ref();
    let methods: &[u8] = if user.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
    stream.write_all(methods).await.map_err(|e| refused(&e))?;
    match (read::<2>(stream).await?, user) {
        ([5, 0], _) => {}
        ([5, 2], Some((name, password))) => {
            let mut login = vec![1];
            for part in [name, password] {
                login.push(
                    u8::try_from(part.len())
                        .map_err(|_| unreachable("its user name or password is too long"))?,
                );
                login.extend_from_slice(part);
            }
            stream.write_all(&login).await.map_err(|e| refused(&e))?;
            if read::<2>(stream).await?[1] != 0 {
                return Err(unreachable("it rejects the credentials"));
            }
        }
        ([5, _], _) => return Err(unreachable("it requires credentials")),
        _ => return Err(unreachable("it does not speak SOCKS5")),
    }
    let mut request = vec![5, 1, 0];
    match destination {
        Destination::Name(name) => {
            request.push(3);
            request.push(u8::try_from(name.len()).map_err(|_| unreachable("the host's name is too long"))?);
            request.extend_from_slice(name.as_bytes());
        }
        Destination::Address(IpAddr::V4(ip)) => {
            request.push(1);
            request.extend_from_slice(&ip.octets());
        }
        Destination::Address(IpAddr::V6(ip)) => {
            request.push(4);
            request.extend_from_slice(&ip.octets());
        }
    }
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).await.map_err(|e| refused(&e))?;
    let [version, reply, _, kind] = read::<4>(stream).await?;
    if version != 5 {
        return Err(unreachable("it does not speak SOCKS5"));
    }
    if reply != 0 {
        return Err(unreachable(match reply {
            2 => "it does not allow this connection",
            3 => "it cannot reach the network",
            4 => "it cannot reach the host",
            5 => "the host refused its connection",
            6 => "its connection timed out",
            _ => "it cannot connect",
        }));
    }
    // The proxy's outgoing address is skipped.
    let length = match kind {
        1 => 4,
        4 => 16,
        3 => usize::from(read::<1>(stream).await?[0]),
        _ => return Err(unreachable("it does not speak SOCKS5")),
    };
    let mut bound = vec![0; length + 2];
    stream.read_exact(&mut bound).await.map_err(|e| refused(&e))?;
    Ok(())
}

async fn read<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(|e| refused(&e))?;
    Ok(bytes)
}

fn refused(error: &io::Error) -> Failure {
    Failure::Unreachable(format!("the proxy: {error}"))
}

fn unreachable(why: &str) -> Failure {
    Failure::Unreachable(format!("the proxy: {why}"))
}
