//! Common to Redis URLs with several hosts, which the `url` crate does not support. Errors never quote the URL: it may
//! contain a password.

use percent_encoding::percent_decode_str;

/// A user of Redis.
pub(super) struct Login {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
}

/// Splits off the login before the last `@`.
pub(super) fn login(rest: &str) -> Result<(Login, &str), &'static str> {
    let (login, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8().map_err(|_| "has a login that is not UTF-8")?;
        Ok::<_, &'static str>(Some(text.into_owned()).filter(|text| !text.is_empty()))
    };
    Ok((Login { user: decoded(user)?, password: decoded(password)? }, rest))
}

/// Parses a host with an optional port.
pub(super) fn address(text: &str, usual_port: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| "has a port that is not a number from 1 to 65535")?)
        }
        _ => (text, usual_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() { Err("has no host name") } else { Ok((host.to_owned(), port)) }
}
/// A host and port as text; an IPv6 address in brackets.
pub(crate) fn host_and_port(host: &str, port: u16) -> String {
    let is_bare_v6 = host.contains(':') && !host.starts_with('[');
    if is_bare_v6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
