//! The proxy between the agent and the `ControlPlane`: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in upper or
//! lower case.
//!
//! The names are a convention shared with other programs, so these variables have no flags and no `X_FILE`. As in `reqwest`,
//! the upper-case name comes first, `ALL_PROXY` covers both schemes, and addresses of this machine are reached directly.
//! `CONTROL_PLANE_URL` is the agent's only URL, so everything is decided here; nothing below reads the environment.

mod no_proxy;
pub(super) mod variables;

use std::fmt;

use crate::control_plane::ProxySettings;

use super::load::Review;
use super::sources::Origin;
use super::values::BaseUrl;
use crate::secret::Secret;
use no_proxy::{NoProxyEntry, entries};
use variables::{ALL, HTTP, HTTPS, NO, proxy_url};

/// How requests reach the `ControlPlane`.
#[derive(Clone, Debug, Default)]
pub enum ProxyDecision {
    /// Directly: no proxy is set for its scheme.
    #[default]
    Unset,
    /// Directly: the host is exempt from the proxy.
    Exempt {
        /// The reason, for display.
        because: String,
    },
    /// Through a proxy.
    Through {
        /// The variable that names the proxy, as spelled.
        variable: String,
        /// The source of the variable.
        origin: Origin,
        /// The proxy.
        settings: ProxySettings,
    },
}

impl ProxyDecision {
    /// Decides how this URL is reached, given the variables found.
    pub(super) fn decide(url: &BaseUrl, review: &mut Review) -> Self {
        let variables = std::mem::take(&mut review.proxy_variables);
        let found = |name| variables.iter().find(|variable| variable.name == name);
        let no_proxy: Vec<_> = found(NO).map(|no| entries(&no.text)).unwrap_or_default();
        for entry in &no_proxy {
            if NoProxyEntry::parse(entry).is_none() {
                review.warn(format!(
                    "NO_PROXY: {entry:?} is not a host, an address or a CIDR block, with or without a port; it is ignored"
                ));
            }
        }
        // Every variable is checked, used for this URL or not: all problems are reported at once.
        for variable in variables.iter().filter(|variable| variable.name != NO) {
            if let Err(reason) = proxy_url(&variable.text) {
                review.problem(&variable.spelling, reason);
            }
        }
        let Some(chosen) = found(if url.is_https() { HTTPS } else { HTTP }).or_else(|| found(ALL)) else {
            return Self::Unset;
        };
        if let Some(because) = exemption(url, &no_proxy) {
            return Self::Exempt { because };
        }
        let Ok(proxy_url) = proxy_url(&chosen.text) else { return Self::Unset };
        Self::Through {
            variable: chosen.spelling.clone(),
            origin: chosen.origin.clone(),
            settings: ProxySettings { url: Secret::new(proxy_url.as_str()), no_proxy },
        }
    }

    /// The client's proxy settings; `None` if requests go directly.
    pub fn settings(&self) -> Option<ProxySettings> {
        match self {
            Self::Through { settings, .. } => Some(settings.clone()),
            Self::Unset | Self::Exempt { .. } => None,
        }
    }
}

impl fmt::Display for ProxyDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("none: no proxy variable is set"),
            Self::Exempt { because } => write!(f, "none: {because}"),
            Self::Through { variable, origin, settings } => {
                write!(f, "{settings} ({variable}, {origin})")
            }
        }
    }
}

/// Why the URL is exempt from the proxy, if it is.
fn exemption(url: &BaseUrl, no_proxy: &[String]) -> Option<String> {
    if url.is_loopback() {
        return Some("CONTROL_PLANE_URL is an address of this machine".to_owned());
    }
    let (host, port) = url.host_and_port();
    let entry = no_proxy
        .iter()
        .find(|entry| NoProxyEntry::parse(entry).is_some_and(|entry| entry.matches(&host, port)))?;
    Some(format!("NO_PROXY holds {entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_and_port_of_a_proxy_have_defaults() {
        for (text, url) in [
            ("proxy", "http://proxy/"),
            ("proxy:3128", "http://proxy:3128/"),
            ("http://proxy:3128/some/where?x#y", "http://proxy:3128/"),
            ("HTTP://user:pa%40ss@Proxy:8080", "http://user:pa%40ss@proxy:8080/"),
            ("user:pass@proxy:3128", "http://user:pass@proxy:3128/"),
            ("https://proxy", "https://proxy/"),
            ("socks5://proxy", "socks5://proxy:1080"),
            ("socks://proxy:1081/", "socks5://proxy:1081"),
            ("socks5h://u:p@[::1]:80", "socks5h://u:p@[::1]:80"),
            ("10.0.0.1:1", "http://10.0.0.1:1/"),
        ] {
            assert_eq!(proxy_url(text).unwrap().as_str(), url, "{text}");
        }
    }

    #[test]
    fn an_invalid_proxy_is_refused_without_being_repeated() {
        for text in [
            "http://",
            "http://hunter2@",
            "ftp://u:hunter2@proxy",
            "socks4://u:hunter2@proxy",
            "socks5://",
            "socks5://u:hunter2@",
            "socks5://pro%20xy:1",
            "http://u:hunter2@proxy:99999",
            "http://u:hunter2@proxy:0",
            "proxy:hunter2",
            "hunter2 hunter2",
            "http://[::1",
            "://hunter2",
        ] {
            let reason = proxy_url(text).expect_err(text);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[track_caller]
    fn exempts(no_proxy: &str, url: &str) -> bool {
        exemption(&url.parse().unwrap(), &entries(no_proxy)).is_some()
    }

    #[test]
    fn no_proxy_names_hosts_below_them_addresses_blocks_and_ports() {
        for (no_proxy, url) in [
            ("*", "https://cp.example"),
            ("*:443", "https://cp.example"),
            ("cp.example", "https://cp.example"),
            ("CP.Example.", "https://cp.EXAMPLE./base"),
            ("example", "https://cp.example:8443"),
            (".cp.example", "https://cp.example"),
            (".example", "https://cp.example"),
            ("*.example", "https://cp.example"),
            ("other, cp.example", "https://cp.example"),
            ("other cp.example", "https://cp.example"),
            ("cp.example:443", "https://cp.example"),
            ("cp.example:80", "http://cp.example"),
            (".example:8443", "https://cp.example:8443"),
            ("10.1.2.3", "http://10.1.2.3:8080"),
            ("10.1.2.3:8080", "http://10.1.2.3:8080"),
            ("10.0.0.0/8", "http://10.1.2.3"),
            ("10.0.0.0/8:80", "http://10.1.2.3"),
            ("10.1.2.3", "http://[::ffff:10.1.2.3]"),
            ("::ffff:10.1.2.3", "http://10.1.2.3"),
            ("fd00::1", "http://[fd00::1]:8080"),
            ("[fd00::1]", "http://[fd00::1]:8080"),
            ("[fd00::1]:8080", "http://[fd00::1]:8080"),
            ("fd00::/8", "http://[fd00::1]"),
            ("bücher.example", "http://xn--bcher-kva.example"),
            ("", "http://localhost:1"),
            ("", "http://127.0.0.1:1"),
        ] {
            assert!(exempts(no_proxy, url), "{no_proxy:?} exempts {url}");
        }
        for (no_proxy, url) in [
            ("", "https://cp.example"),
            (" , ,", "https://cp.example"),
            ("cp.example:8443", "https://cp.example"),
            ("cp.example:443", "http://cp.example"),
            ("p.example", "https://cp.example"),
            ("cp.example", "https://xcp.example"),
            ("cp.example", "https://cp.example.org"),
            ("*.cp.example", "https://cp.example"),
            ("10.1.2.3:80", "http://10.1.2.3:8080"),
            ("10.1.2", "http://10.1.2.3"),
            ("10.0.0.0/8", "http://11.1.2.3"),
            ("[fd00::1]:80", "http://[fd00::1]:8080"),
            ("cp.example:99999", "https://cp.example"),
            (".", "https://cp.example"),
        ] {
            assert!(!exempts(no_proxy, url), "{no_proxy:?} exempts {url}");
        }
    }
}
