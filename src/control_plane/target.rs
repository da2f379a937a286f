//! The URLs of requests: the base URL, parsed once, with paths appended.

use hyper::Uri;
use hyper::header::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::transport::basic;
use crate::record::Kind;

/// All characters except RFC 3986's unreserved ones: any ID stays one segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Leaves room for IDs: a whole URL may have 64 KiB.
const PREFIX_MAX_BYTES: usize = 2 << 10;

/// The `ControlPlane`'s address.
pub(super) struct Target {
    /// `https://host:port/path`, without a trailing slash or user info.
    prefix: String,
    /// The same, parsed.
    pub(super) uri: Uri,
    /// The audience of tokens: the URL's scheme, host and port.
    pub(super) origin: String,
    pub(super) is_https: bool,
    /// The URL's user info as Basic authentication.
    pub(super) basic: Option<HeaderValue>,
}

impl Target {
    /// Parses the configured URL. Errors never quote it: it may contain a password.
    pub(super) fn new(url: &str) -> Result<Self, &'static str> {
        let mut url = Url::parse(url.trim()).map_err(|_| "not a URL")?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("neither http:// nor https://");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("a base URL must not have a query or a fragment");
        }
        let basic = take_user_info(&mut url)?;
        let prefix = url.as_str().trim_end_matches('/').to_owned();
        // Not every URL that parses can be requested. Such a base URL must be rejected here: otherwise each record sent to
        // it would appear to be at fault.
        let uri = prefix.parse().ok().filter(|_| prefix.len() <= PREFIX_MAX_BYTES);
        let uri = uri.ok_or("it is too long or has invalid characters")?;
        Ok(Self {
            prefix,
            uri,
            origin: url.origin().ascii_serialization(),
            is_https: url.scheme() == "https",
            basic,
        })
    }

    /// The URL of a path that needs no encoding.
    pub(super) fn path(&self, path: &str) -> String {
        [&self.prefix, path].concat()
    }

    /// The URL of something below a server.
    pub(super) fn server(&self, server_id: &str, what: &str) -> Result<String, &'static str> {
        self.nested("/api/v1/servers/", server_id, what)
    }

    /// The URL for a record of this kind.
    pub(super) fn record(&self, kind: Kind, session_id: &str) -> Result<String, &'static str> {
        let what = match kind {
            Kind::Usage => "/usage-records",
            Kind::Started => "/started",
            Kind::Completed => "/completed",
            Kind::Quota => "/refresh",
            Kind::Lifecycle => return Err("no endpoint for a lifecycle event of unknown type"),
        };
        self.nested("/api/v1/sessions/", session_id, what)
    }

    fn nested(&self, collection: &str, id: &str, what: &str) -> Result<String, &'static str> {
        // RFC 3986 §6.2.2: `%2E%2E` *is* `..`, and both are normalised in transit, first by our own URL library. No
        // spelling of these names one session, and most spellings name another endpoint.
        if matches!(id, "" | "." | "..") {
            return Err("an ID that is empty, '.' or '..' cannot be part of a URL path");
        }
        let mut url =
            String::with_capacity(self.prefix.len() + collection.len() + id.len() + what.len() + 16);
        url.push_str(&self.prefix);
        url.push_str(collection);
        url.extend(utf8_percent_encode(id, SEGMENT));
        url.push_str(what);
        Ok(url)
    }
}

/// Moves the user info from the URL into a header.
fn take_user_info(url: &mut Url) -> Result<Option<HeaderValue>, &'static str> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let decoded = |text| percent_decode_str(text).collect::<Vec<u8>>();
    let basic = basic(&decoded(url.username()), &decoded(url.password().unwrap_or_default()))?;
    let cleared = url.set_username("").and_then(|()| url.set_password(None));
    cleared.map_err(|()| "its user name or password cannot be sent")?;
    Ok(Some(basic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(url: &str) -> Target {
        Target::new(url).unwrap()
    }

    #[test]
    fn each_kind_has_its_endpoint_and_lifecycle_none() {
        let target = target("https://cp.example/");
        for (kind, path) in [
            (Kind::Usage, "usage-records"),
            (Kind::Started, "started"),
            (Kind::Completed, "completed"),
            (Kind::Quota, "refresh"),
        ] {
            let expected = format!("https://cp.example/api/v1/sessions/s-1/{path}");
            assert_eq!(target.record(kind, "s-1").unwrap(), expected);
        }
        assert!(target.record(Kind::Lifecycle, "s-1").is_err());
    }

    #[test]
    fn ids_that_no_path_can_hold_are_refused_rather_than_sent_elsewhere() {
        for id in ["", ".", ".."] {
            assert!(target("http://h").record(Kind::Usage, id).is_err(), "{id:?}");
        }
        for id in ["...", " ", "\t.\n.", "%2e%2e", "../../x", "?", "#", "a/b", ";", "\\", "ü", "\0"] {
            let url = target("http://h").record(Kind::Usage, id).unwrap();
            assert_eq!(Url::parse(&url).unwrap().path_segments().unwrap().count(), 5, "{id:?}: {url}");
        }
    }

    proptest! {
        #[test]
        fn any_other_id_is_one_segment_that_decodes_to_itself(id in "\\PC{1,40}|[./%?#\\\\\t\n ]{3,9}") {
            prop_assume!(id != "." && id != "..");
            let url = Url::parse(&target("http://h/base").record(Kind::Usage, &id).unwrap()).unwrap();
            let segments: Vec<_> = url.path_segments().unwrap().collect();
            prop_assert_eq!(segments.len(), 6);
            prop_assert_eq!(percent_encoding::percent_decode_str(segments[4]).decode_utf8().unwrap(), id);
        }
    }

    #[test]
    fn user_info_leaves_the_url_and_becomes_a_sensitive_header() {
        let target = target("https://user:pa%40ss@cp.example:8443/base/");
        assert_eq!(target.path("/x"), "https://cp.example:8443/base/x");
        assert_eq!(target.origin, "https://cp.example:8443");
        let basic = target.basic.unwrap();
        assert_eq!(basic, "Basic dXNlcjpwYUBzcw==");
        assert!(basic.is_sensitive());
    }

    #[test]
    fn an_invalid_base_url_is_refused_without_being_repeated() {
        let long = format!("http://u:hunter2@h/{}", "x".repeat(PREFIX_MAX_BYTES));
        for url in [
            "",
            "cp.example",
            "ftp://u:hunter2@h",
            "http://{{u:hunter2@h}}",
            &long,
            "http://h?token=hunter2",
            "http://h#x",
            "http://u:hunter2@:1",
        ] {
            let Err(reason) = Target::new(url) else { panic!("{url}") };
            assert!(!reason.contains("hunter2"));
        }
    }
}
