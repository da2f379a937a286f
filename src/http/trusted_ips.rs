//! `TRUSTED_IPS`: the addresses with access.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The addresses that may read the HTTP surface; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedIps(Vec<IpNet>);

impl TrustedIps {
    /// Whether this peer has access.
    pub fn allows(&self, peer: IpAddr) -> bool {
        // On a dual-stack socket an IPv4 peer arrives as ::ffff:a.b.c.d.
        self.0.is_empty() || self.0.iter().any(|block| block.contains(&peer.to_canonical()))
    }
}

impl FromStr for TrustedIps {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let parts = s.split(',').map(str::trim).filter(|part| !part.is_empty());
        let blocks = parts.map(|part| {
            let block = part.parse().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
            block.map_err(|_| {
                format!("{part:?} is neither an IP address nor a CIDR block (example: 10.0.0.0/8)")
            })
        });
        blocks.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_addresses_are_single_ones_or_blocks_and_none_means_all() {
        let trusted: TrustedIps = "10.0.0.0/8, 192.168.1.7,::1,".parse().unwrap();
        for ip in ["10.1.2.3", "192.168.1.7", "::1", "::ffff:10.9.9.9"] {
            assert!(trusted.allows(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["11.0.0.1", "192.168.1.8", "::2"] {
            assert!(!trusted.allows(ip.parse().unwrap()), "{ip}");
        }
        assert!(TrustedIps::default().allows("8.8.8.8".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<TrustedIps>().is_err());
    }
}
