//! The host names under which the HTTP surface answers: `TRUSTED_HOSTS`, and the parser for a request's `Host`.

use std::str::FromStr;

use url::Host;

/// A host with an optional port, as in `Host` (RFC 9110 §7.2). Names are in lower case without a trailing dot, and an
/// IPv4-mapped IPv6 address is stored as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CalledHost {
    /// The name or address.
    pub(super) host: Host<String>,
    /// The port, if any.
    pub(super) port: Option<u16>,
}

impl CalledHost {
    /// Parses `name`, `name:port`, `10.0.0.1:port`, `[::1]:port`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an IPv6 address are inside brackets.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        // A colon without a number after it is not a port.
        let port = match port.filter(|port| !port.is_empty()) {
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        let host = match Host::parse(host.strip_suffix('.').unwrap_or(host)).ok()? {
            Host::Ipv6(ip) => ip.to_ipv4_mapped().map_or(Host::Ipv6(ip), Host::Ipv4),
            // A URL's host may contain more than a host name.
            Host::Domain(name)
                if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) =>
            {
                return None;
            }
            host => host,
        };
        Some(Self { host, port })
    }
}

/// Additional names and addresses allowed in `Host`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedHosts(Vec<CalledHost>);

impl TrustedHosts {
    /// These, plus the host on which the surface listens unless it is a wildcard.
    #[must_use]
    pub fn with_own(mut self, server_host: &str) -> Self {
        let own = CalledHost::parse(server_host).or_else(|| CalledHost::parse(&format!("[{server_host}]")));
        let is_every = |called: &CalledHost| match &called.host {
            Host::Ipv4(ip) => ip.is_unspecified(),
            Host::Ipv6(ip) => ip.is_unspecified(),
            Host::Domain(_) => false,
        };
        self.0.extend(own.filter(|own| !is_every(own)));
        self
    }

    /// Whether the host is listed. An entry with a port matches only that port.
    pub(super) fn contains(&self, called: &CalledHost) -> bool {
        self.0
            .iter()
            .any(|own| own.host == called.host && own.port.is_none_or(|port| called.port == Some(port)))
    }
}

impl FromStr for TrustedHosts {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split(',').map(str::trim).filter(|part| !part.is_empty());
        let hosts = parts.map(|part| {
            let host = CalledHost::parse(part).or_else(|| CalledHost::parse(&format!("[{part}]")));
            host.ok_or_else(|| {
                format!("{part:?} is neither a host name nor an IP address, with or without a port")
            })
        });
        hosts.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_host_is_the_same_in_every_spelling() {
        for (spelling, same) in [
            ("LOCALHOST", "localhost"),
            ("localhost.", "localhost"),
            ("localhost:", "localhost"),
            ("[::FFFF:127.0.0.1]", "127.0.0.1"),
            ("[0:0::1]", "[::1]"),
            ("Agent.Example:080", "agent.example:80"),
        ] {
            assert_eq!(CalledHost::parse(spelling), CalledHost::parse(same), "{spelling}");
        }
        let with_port = CalledHost::parse("[::1]:8010").unwrap();
        assert_eq!(with_port.port, Some(8010));
        for wrong in [
            "",
            ":80",
            "a:b",
            "a:+80",
            "a:99999",
            "::1",
            "[::1",
            "a b",
            "a/b",
            "u@localhost",
            "a,b",
            "[::1]x",
        ] {
            assert_eq!(CalledHost::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn trusted_hosts_are_exactly_those_that_are_named() {
        let hosts: TrustedHosts = " Agent.Example., 10.0.0.1:8010 ,::1,".parse().unwrap();
        let contains = |text| hosts.contains(&CalledHost::parse(text).unwrap());
        assert!(contains("agent.example") && contains("AGENT.example:1") && contains("[::1]:8010"));
        assert!(contains("10.0.0.1:8010") && !contains("10.0.0.1") && !contains("10.0.0.1:80"));
        assert!(!contains("x.agent.example") && !contains("example") && !contains("localhost"));
        for wrong in ["a b", "http://a", "a,b/c", "*"] {
            assert!(wrong.parse::<TrustedHosts>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_listening_host_is_trusted_unless_it_is_a_wildcard() {
        let own = |host| TrustedHosts::default().with_own(host);
        assert!(own("edge-1").contains(&CalledHost::parse("EDGE-1:8010").unwrap()));
        assert!(own("::1").contains(&CalledHost::parse("[::1]").unwrap()));
        for every in ["0.0.0.0", "::"] {
            assert_eq!(own(every), TrustedHosts::default());
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,30}|[a.:\\[\\]0-9@%]{0,20}") {
            let _ = CalledHost::parse(&text);
            let _ = text.parse::<TrustedHosts>();
        }
    }
}
