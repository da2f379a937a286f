//! Host names under which the agent answers. A foreign page can point its own name here ("DNS rebinding") and then use the
//! access of the browser's user; but the browser sends that name in `Host`.
//!
//! Paths that show customers' data or change anything require an address of the agent, `localhost`, the host of
//! `SERVER_HOST`, or one of `TRUSTED_HOSTS`. Health and metrics answer to any name. `X-Forwarded-Host` is ignored, since
//! anybody can set it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use url::Host;

use super::refusals::Refusals;
use super::trusted_hosts::{CalledHost, TrustedHosts};

/// Maximum bytes of a name in the log.
const NAME_LOGGED: usize = 100;

/// The address on which a connection came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalAddress(pub(super) SocketAddr);

/// The trusted names.
pub struct Hosts {
    trusted: TrustedHosts,
    refused: Refusals,
}

impl Hosts {
    /// For an agent that listens on `server_host`, with these further names.
    pub fn new(server_host: &str, trusted: Option<&TrustedHosts>) -> Self {
        let trusted = trusted.cloned().unwrap_or_default().with_own(server_host);
        Self { trusted, refused: Refusals::default() }
    }

    /// Whether a name is trusted, on a connection to this address.
    fn is_own(&self, name: &str, local: Option<IpAddr>) -> bool {
        let Some(called) = CalledHost::parse(name) else { return false };
        let is_local = match &called.host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => local == Some(IpAddr::V4(*ip)),
            Host::Ipv6(ip) => local == Some(IpAddr::V6(*ip)),
        };
        is_local || self.trusted.contains(&called)
    }

    /// The untrusted name in a request, if there is one.
    fn untrusted_name(&self, request: &Request) -> Option<String> {
        let local = request.extensions().get::<LocalAddress>().map(|local| local.0.ip().to_canonical());
        let headers = request.headers().get_all(header::HOST);
        // RFC 9112 §3.2: one Host, overridden by a target that names a host. Here both must be trusted.
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut names: Vec<String> = headers.iter().map(text).collect();
        if names.len() != 1 {
            return Some(names.join(", "));
        }
        names.extend(request.uri().authority().map(ToString::to_string));
        names.into_iter().find(|name| !self.is_own(name, local))
    }

    fn note(&self, name: &str) {
        if let Some(count) = self.refused.count() {
            let host: String = name.chars().take(NAME_LOGGED).collect();
            tracing::warn!(
                count,
                host,
                "security: refused requests with an unknown Host; add it to TRUSTED_HOSTS if it is this agent's name"
            );
        }
    }
}

/// Admits requests that use a trusted name.
pub(super) async fn only_by_own_names(
    State(hosts): State<Arc<Hosts>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(name) = hosts.untrusted_name(&request) else { return next.run(request).await };
    hosts.note(&name);
    let error = "Host is not localhost, an address of this agent or one of its TRUSTED_HOSTS";
    (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn is_let_in(target: &str, hosts: &[&str], local: &str) -> bool {
        let own = Hosts::new("edge-1.internal", Some(&"agent.example,10.9.9.9:80".parse().unwrap()));
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header("Host", *host);
        }
        let mut request = request.header("X-Forwarded-Host", "localhost").body(Body::empty()).unwrap();
        request.extensions_mut().insert(LocalAddress(local.parse().unwrap()));
        own.untrusted_name(&request).is_none()
    }

    #[test]
    fn an_agent_is_called_by_its_addresses_and_names() {
        for (host, local) in [
            ("localhost", "127.0.0.1:8010"),
            ("LocalHost.:9999", "127.0.0.1:8010"),
            ("127.0.0.1:8010", "127.0.0.1:8010"),
            ("127.0.0.1", "[::ffff:127.0.0.1]:8010"),
            ("[::ffff:127.0.0.1]", "127.0.0.1:8010"),
            ("[::1]:8010", "[::1]:8010"),
            ("192.168.1.5:8010", "192.168.1.5:8010"),
            ("edge-1.INTERNAL:8010", "10.0.0.1:8010"),
            ("agent.example", "10.0.0.1:8010"),
            ("10.9.9.9:80", "10.0.0.1:8010"),
        ] {
            assert!(is_let_in("/status", &[host], local), "{host} at {local}");
        }
        assert!(is_let_in("http://localhost:8010/status", &["localhost"], "127.0.0.1:8010"));
    }

    #[test]
    fn other_names_are_refused() {
        let local = "127.0.0.1:8010";
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "127.0.0.2",
            "0.0.0.0",
            "[::1]",
            "10.9.9.9",
            "x.agent.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "localhost, evil.example",
            "localhost:evil",
        ] {
            assert!(!is_let_in("/status", &[host], local), "{host:?}");
        }
        assert!(!is_let_in("/status", &[], local), "no Host at all");
        assert!(!is_let_in("/status", &["localhost", "localhost"], local), "two");
        assert!(!is_let_in("http://evil.example/status", &["localhost"], local), "the target's host counts");
        assert!(!is_let_in("http://localhost/status", &["evil.example"], local));
    }
}
