//! `NO_PROXY`: the hosts that are reached without a proxy.

use std::net::IpAddr;

use ipnet::IpNet;
use url::Host;

/// The entries of `NO_PROXY`. Host names contain no blanks, so blanks separate entries too.
pub(super) fn entries(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| c == ',' || c.is_whitespace());
    parts.filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

/// One entry of `NO_PROXY`.
pub(super) struct NoProxyEntry {
    hosts: HostPattern,
    /// Matches this port only.
    port: Option<u16>,
}

enum HostPattern {
    All,
    Block(IpNet),
    /// This domain and all its subdomains, in lower case.
    Domain(String),
    /// Its subdomains only.
    Below(String),
}

impl NoProxyEntry {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(hosts) = HostPattern::parse(text) {
            return Some(Self { hosts, port: None });
        }
        let (hosts, port) = text.rsplit_once(':')?;
        Some(Self { hosts: HostPattern::parse(hosts)?, port: Some(port.parse().ok()?) })
    }

    pub(super) fn matches(&self, host: &Host<String>, port: u16) -> bool {
        self.port.is_none_or(|own| own == port) && self.hosts.contain(host)
    }
}

impl HostPattern {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(block) = bare.parse::<IpNet>() {
            return Some(Self::Block(block));
        }
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Some(Self::Block(IpNet::from(ip.to_canonical())));
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text.strip_prefix('.').unwrap_or(text)),
        };
        let name = name.trim_end_matches('.');
        // Also converts an internationalised name to the URL's form.
        let Ok(Host::Domain(name)) = Host::parse(name) else { return None };
        Some(if below { Self::Below(name) } else { Self::Domain(name) })
    }

    fn contain(&self, host: &Host<String>) -> bool {
        let is_below = |name: &str, domain: &str| {
            name.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        };
        match (self, host) {
            (Self::All, _) => true,
            (Self::Block(block), Host::Ipv4(ip)) => block.contains(&IpAddr::V4(*ip)),
            (Self::Block(block), Host::Ipv6(ip)) => {
                block.contains(&IpAddr::V6(*ip)) || block.contains(&IpAddr::V6(*ip).to_canonical())
            }
            (Self::Domain(domain), Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                name == domain || is_below(name, domain)
            }
            (Self::Below(domain), Host::Domain(name)) => is_below(name.trim_end_matches('.'), domain),
            _ => false,
        }
    }
}
