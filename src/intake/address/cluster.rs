//! Parses `redis+cluster://[user:password@]host[:port][,host[:port]...]`: some nodes of a Redis Cluster, which know the
//! others. With TLS: `rediss+cluster://`. Also finds the hash tag of a key's name.

use super::hosts::{address, login};

/// The default port of nodes.
const PORT: u16 = 6379;
const SCHEME: &str = "redis+cluster://";
const SCHEME_TLS: &str = "rediss+cluster://";

/// A parsed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClusterUrl {
    /// The nodes to ask first.
    pub(crate) nodes: Vec<(String, u16)>,
    /// The user of Redis.
    pub(crate) user: Option<String>,
    /// The password of Redis.
    pub(crate) password: Option<String>,
    /// Whether nodes are reached over TLS.
    pub(crate) is_encrypted: bool,
}

impl ClusterUrl {
    /// Whether a URL has this scheme.
    pub(crate) fn is_meant(url: &str) -> bool {
        url.starts_with(SCHEME) || url.starts_with(SCHEME_TLS)
    }

    /// Parses the URL. Errors never quote it: it may contain a password.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let plain = url.strip_prefix(SCHEME);
        let rest = plain.or_else(|| url.strip_prefix(SCHEME_TLS)).ok_or("is not a redis+cluster:// URL")?;
        let (login, rest) = login(rest)?;
        let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
        if !matches!(database, "" | "0") {
            return Err("names a database; a cluster has only database 0");
        }
        let nodes = hosts.split(',').map(|text| address(text, PORT)).collect::<Result<_, _>>()?;
        Ok(Self { nodes, user: login.user, password: login.password, is_encrypted: plain.is_none() })
    }
}

/// The hash tag of a key's name, if it has one: the text in the first braces, which alone determines the key's slot.
pub(crate) fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read() {
        let url = ClusterUrl::parse("rediss+cluster://agent:p%40ss@h1:1,h2,[::1]:3/0").unwrap();
        assert_eq!(url.nodes, [("h1".into(), 1), ("h2".into(), 6379), ("::1".into(), 3)]);
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("agent"), Some("p@ss")));
        assert!(url.is_encrypted);
        let url = ClusterUrl::parse("redis+cluster://h").unwrap();
        assert_eq!((url.user, url.password, url.is_encrypted), (None, None, false));
    }

    #[test]
    fn problems_are_reported_without_the_password() {
        for rest in ["", ":hunter2@", ":hunter2@h:hunter2", "h/hunter2", "h,,h", "h/1"] {
            let error = ClusterUrl::parse(&format!("redis+cluster://{rest}")).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_hash_tag_is_what_redis_takes_for_one() {
        let tags = ["a", "{x}a", "a{x}", "a{x}{y}", "a{{x}y", "a{}b{x}", "a{x", "a}x{", ""].map(hash_tag);
        let expected = [None, Some("x"), Some("x"), Some("x"), Some("{x"), None, None, None, None];
        assert_eq!(tags, expected);
    }
}
