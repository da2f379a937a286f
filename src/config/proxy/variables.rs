//! The proxy variables, and the URLs in them.

use url::{Host, Url};

use crate::config::sources::Origin;
use crate::config::values::without_user_info;
use crate::control_plane::ProxySettings;
use crate::secret::HIDDEN;

pub(super) const HTTP: &str = "HTTP_PROXY";
pub(super) const HTTPS: &str = "HTTPS_PROXY";
pub(super) const ALL: &str = "ALL_PROXY";
pub(super) const NO: &str = "NO_PROXY";

/// Every variable and its description.
pub(in crate::config) const VARIABLES: [(&str, &str); 4] = [
    (HTTP, "Proxy for an http:// CONTROL_PLANE_URL"),
    (HTTPS, "Proxy for an https:// CONTROL_PLANE_URL"),
    (ALL, "Proxy for both schemes, unless HTTP_PROXY or HTTPS_PROXY is set"),
    (NO, "Hosts to reach without a proxy: HOST or HOST:PORT, separated by commas"),
];

/// A variable that is set.
#[derive(Clone, Debug)]
pub(in crate::config) struct Variable {
    /// Its name in upper case.
    pub(in crate::config) name: &'static str,
    /// Its name as spelled in its source.
    pub(in crate::config) spelling: String,
    pub(in crate::config) text: String,
    pub(in crate::config) origin: Origin,
}

impl Variable {
    /// Its value for display, without credentials.
    pub(in crate::config) fn shown(&self) -> String {
        if self.name == NO {
            return self.text.clone();
        }
        // The password could be anywhere in a URL that does not parse.
        proxy_url(&self.text).map_or_else(|_| HIDDEN.to_owned(), |url| without_user_info(url.as_str()))
    }
}

/// Parses a proxy's URL and adds a missing port. Errors never quote it: it may contain a password.
pub(super) fn proxy_url(text: &str) -> Result<Url, String> {
    // Without a scheme, every program that reads these variables assumes HTTP.
    let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let mut url = Url::parse(&text).map_err(|error| format!("is not the URL of a proxy: {error}"))?;
    // Desktop settings write `socks://`.
    if url.scheme() == "socks" {
        let _ = url.set_scheme("socks5");
    }
    let schemes = ProxySettings::SCHEMES;
    let Some((_, usual_port)) = schemes.into_iter().find(|(scheme, _)| *scheme == url.scheme()) else {
        let names = schemes.map(|(scheme, _)| format!("{scheme}://"));
        return Err(format!("is not the URL of a supported proxy ({})", names.join(", ")));
    };
    // The parser does not check the hosts of non-HTTP URLs.
    let host = url.host_str().filter(|host| !host.is_empty()).map(Host::parse);
    if !matches!(host, Some(Ok(_))) {
        return Err("is not the URL of a proxy: the host is missing".to_owned());
    }
    let port = url.port_or_known_default().unwrap_or(usual_port);
    if port == 0 {
        return Err("is not the URL of a proxy: 0 is not a port".to_owned());
    }
    // The part after the port means nothing to a proxy.
    url.set_path("");
    url.set_query(None);
    url.set_fragment(None);
    // The URL drops the default port of its scheme again.
    url.set_port(Some(port)).map_err(|()| "is not the URL of a proxy: the port is missing".to_owned())?;
    Ok(url)
}
