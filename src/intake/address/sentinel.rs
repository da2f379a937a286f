//! Parses `redis+sentinel://[user:password@]host[:port][,host[:port]...]/name[/db]`: a primary that sentinels know by name.

use super::hosts::{address, login};

/// The default port of sentinels.
const PORT: u16 = 26_379;
const SCHEME: &str = "redis+sentinel://";

/// A parsed URL. The `url` crate does not support several hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SentinelUrl {
    /// The sentinels.
    pub(crate) sentinels: Vec<(String, u16)>,
    /// The primary's name at the sentinels.
    pub(crate) name: String,
    /// The user of Redis, not of the sentinels.
    pub(crate) user: Option<String>,
    /// The password of Redis.
    pub(crate) password: Option<String>,
    /// The database.
    pub(crate) db: u16,
}

impl SentinelUrl {
    /// Whether a URL has this scheme.
    pub(crate) fn is_meant(url: &str) -> bool {
        url.starts_with(SCHEME)
    }

    /// Parses the URL. Errors never quote it: it may contain a password.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = url.strip_prefix(SCHEME).ok_or("is not a redis+sentinel:// URL")?;
        let (login, rest) = login(rest)?;
        let mut parts = rest.split('/');
        let sentinels = parts.next().unwrap_or_default().split(',');
        let sentinels = sentinels.map(|text| address(text, PORT)).collect::<Result<_, _>>()?;
        let name = parts.next().filter(|name| !name.is_empty());
        let name =
            name.ok_or("has no primary's name (example: redis+sentinel://host1,host2/name/0)")?.to_owned();
        let db = match parts.next() {
            None | Some("") => 0,
            Some(db) => db.parse().map_err(|_| "has a last part that is not a database number")?,
        };
        if parts.next().is_some() {
            return Err("has more parts than a name and a database number");
        }
        Ok(Self { sentinels, name, user: login.user, password: login.password, db })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_read() {
        let url = SentinelUrl::parse("redis+sentinel://agent:p%40ss@h1:1,h2,[::1]:3/primary/2").unwrap();
        assert_eq!(url.sentinels, [("h1".into(), 1), ("h2".into(), 26_379), ("::1".into(), 3)]);
        assert_eq!((url.name.as_str(), url.db), ("primary", 2));
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("agent"), Some("p@ss")));
        let url = SentinelUrl::parse("redis+sentinel://:pass@h/primary").unwrap();
        assert_eq!((url.user, url.password.as_deref(), url.db), (None, Some("pass"), 0));
    }

    #[test]
    fn problems_are_reported_without_the_password() {
        for rest in ["h", "h/", ":hunter2@/name", ":hunter2@h:hunter2/name", "h/name/hunter2", "h/name/0/1"] {
            let error = SentinelUrl::parse(&format!("redis+sentinel://{rest}")).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
