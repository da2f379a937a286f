//! Parsers for values. Each reads a string; its error describes the valid form.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use url::Url;

/// Longer than any sensible interval, and short enough that arithmetic on instants cannot overflow.
const SECONDS_MAX: f64 = 10.0 * 365.0 * 86_400.0;

/// A number of bytes. Parses `1048576`, `64k`, `256 MiB`, `10GiB`; units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let digits = s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = s.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(0),
            "k" | "kb" | "kib" => Some(10),
            "m" | "mb" | "mib" => Some(20),
            "g" | "gb" | "gib" => Some(30),
            "t" | "tb" | "tib" => Some(40),
            _ => None,
        };
        let number = number.parse::<u64>().ok();
        number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift)).map(Self).ok_or_else(
            || format!("{s:?} is not a number of bytes (examples: 1048576, 64KiB, 256 MiB, 10GiB)"),
        )
    }
}

impl fmt::Display for ByteSize {
    /// Uses the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Parses a number of bytes within limits, both inclusive.
pub(super) fn bytes(
    min: ByteSize,
    max: ByteSize,
) -> impl Fn(&str) -> Result<ByteSize, String> + Clone + Send + Sync + 'static {
    move |s| {
        let bytes = s.parse()?;
        if (min..=max).contains(&bytes) {
            Ok(bytes)
        } else {
            Err(format!("{s:?} is not between {min} and {max}"))
        }
    }
}

/// Parses a whole number within limits, both inclusive.
pub(super) fn whole(
    min: u32,
    max: u32,
) -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync + 'static {
    move |s| {
        let number = s.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| format!("{s:?} is not a whole number from {min} to {max}"))
    }
}

/// A TCP port.
pub(super) fn port(s: &str) -> Result<u16, String> {
    s.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{s:?} is not a port (1 to 65535)"))
}

/// Seconds above 0, with fractions.
pub(super) fn seconds(s: &str) -> Result<Duration, String> {
    seconds_or_zero(s)
        .ok()
        .filter(|duration| *duration >= Duration::from_millis(1))
        .ok_or_else(|| format!("{s:?} is not a number of seconds above 0"))
}

/// Seconds; 0 switches the feature off.
pub(super) fn seconds_or_zero(s: &str) -> Result<Duration, String> {
    let seconds = s.parse::<f64>().ok().filter(|seconds| (0.0..=SECONDS_MAX).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("{s:?} is not a number of seconds"))
}

/// A factor of at least 0. The caller handles factors below 1: old files have them.
pub(super) fn factor(s: &str) -> Result<f64, String> {
    let factor = s.parse().ok().filter(|factor| (0.0..=100.0).contains(factor));
    factor.ok_or_else(|| format!("{s:?} is not a number from 0 to 100"))
}

/// A boolean, in the spellings people and other programs use.
pub(super) fn boolean(s: &str) -> Result<bool, String> {
    match s.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Ok(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Ok(false),
        _ => Err(format!("{s:?} is neither true nor false")),
    }
}

/// A display name: anything that fits on a line.
pub(super) fn name(s: &str) -> Result<String, String> {
    if s.chars().count() <= 256 && !s.contains(char::is_control) {
        Ok(s.to_owned())
    } else {
        Err("is not a name (up to 256 characters, no control characters)".to_owned())
    }
}

/// An identifier that is valid in a header, a URL path and the name of a Redis key.
pub(super) fn identifier(s: &str) -> Result<String, String> {
    let fits = s.len() <= 128 && s.bytes().all(|b| b.is_ascii_graphic() && !b"/\\?#%\"".contains(&b));
    // As path segments these two would name another resource.
    if fits && !matches!(s, "." | "..") {
        Ok(s.to_owned())
    } else {
        Err(format!(
            "{s:?} is not an identifier (1 to 128 of A-Z a-z 0-9 - . _ ~ : @ and similar, no spaces)"
        ))
    }
}

/// A version that is valid after the slash in a `User-Agent`.
pub(super) fn version(s: &str) -> Result<String, String> {
    if s.len() <= 64 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._+~".contains(&b)) {
        Ok(s.to_owned())
    } else {
        Err(format!("{s:?} is not a version (letters, digits, and - . _ + ~)"))
    }
}

/// A host name or an IP address.
pub(super) fn host(s: &str) -> Result<String, String> {
    let is_name = s.len() <= 253 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if is_name || s.parse::<IpAddr>().is_ok() {
        Ok(s.to_owned())
    } else {
        Err(format!("{s:?} is neither a host name nor an IP address"))
    }
}

/// A header name: a token of RFC 9110.
pub(super) fn header_name(s: &str) -> Result<String, String> {
    if s.len() <= 128 && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
        Ok(s.to_owned())
    } else {
        Err(format!("{s:?} is not a header name"))
    }
}

/// An `http://` or `https://` base URL. Its user info is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl(Url);

impl BaseUrl {
    /// The complete URL, for the one place that needs it.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// Whether requests to it are encrypted.
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Its host and port.
    pub(super) fn host_and_port(&self) -> (url::Host<String>, u16) {
        // An HTTP URL always has both.
        let host = self.0.host().map_or_else(|| url::Host::Domain(String::new()), |host| host.to_owned());
        (host, self.0.port_or_known_default().unwrap_or_default())
    }

    /// Whether it names this machine.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip).to_canonical().is_loopback(),
            None => false,
        }
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    /// Errors never quote the URL: it may contain a password.
    fn from_str(s: &str) -> Result<Self, String> {
        let url = Url::parse(s).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => {
                "is not a URL: it must start with http:// or https://".to_owned()
            }
            error => format!("is not a URL: {error}"),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("is neither an http:// nor an https:// URL".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("has a query or a fragment, which is not allowed in a base URL".to_owned());
        }
        Ok(Self(url))
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_user_info(self.0.as_str()))
    }
}

/// The URL with `***` in place of its user info; text that is not a URL is returned unchanged.
pub(super) fn without_user_info(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_come_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64k", 64 << 10),
            ("64 KB", 64 << 10),
            ("256 MiB", 256 << 20),
            ("10GiB", 10 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5G", "10 PB", "99999999999999999999", "17179869184GiB", "1 2", "k1"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        let small = bytes(ByteSize(1024), ByteSize(4096));
        assert_eq!(small("4k"), Ok(ByteSize(4096)));
        assert_eq!(small("5k"), Err("\"5k\" is not between 1KiB and 4KiB".to_owned()));
    }

    proptest! {
        #[test]
        fn bytes_that_are_shown_read_back(number in any::<u64>(), shift in 0_u32..64) {
            let bytes = ByteSize(number >> shift << shift);
            prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
        }
    }

    #[test]
    fn booleans_come_as_python_and_people_write_them() {
        for text in ["true", "True", "1", "YES", "on"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["false", "False", "0", "no", "Off"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        assert_eq!(boolean("maybe"), Err("\"maybe\" is neither true nor false".to_owned()));
    }

    #[test]
    fn numbers_outside_their_limits_are_refused() {
        assert_eq!(port("8010"), Ok(8010));
        for text in ["0", "65536", "-1", "abc", "80.0"] {
            assert_eq!(port(text), Err(format!("{text:?} is not a port (1 to 65535)")));
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds_or_zero("0"), Ok(Duration::ZERO));
        for text in ["0", "-1", "NaN", "inf", "1e300", "5s", "0.0001"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(whole(1, 9)("0").is_err() && whole(1, 9)("10").is_err() && whole(1, 9)("9").is_ok());
        assert!(factor("2.0").is_ok() && factor("-1").is_err() && factor("nan").is_err());
    }

    #[test]
    fn an_identifier_can_stand_in_a_path_and_in_a_header() {
        for text in ["edge-eu-1", "a.b_c~d:e@f", "{x}"] {
            assert!(identifier(text).is_ok(), "{text}");
        }
        for text in ["a b", "a/b", "..", ".", "a%2fb", "ü", "a\nb", &"x".repeat(129)] {
            assert!(identifier(text).is_err(), "{text}");
        }
        assert!(host("::1").is_ok() && host("edge-1.example").is_ok() && host("a b").is_err());
        assert!(header_name("X-API-Key").is_ok() && header_name("X API").is_err());
        assert!(version("1.0.0+git").is_ok() && version("1 0").is_err());
        assert!(name("DataPlane Agent").is_ok() && name("a\nb").is_err());
    }

    #[test]
    fn a_base_url_shows_no_password_and_knows_its_own_machine() {
        let url: BaseUrl = "https://u:hunter2@cp.example/base".parse().unwrap();
        assert_eq!(format!("{url:?}"), "https://***@cp.example/base");
        assert!(url.is_https() && !url.is_loopback() && url.expose().contains("hunter2"));
        for text in ["http://localhost:1", "http://127.0.0.2", "http://[::1]", "http://[::ffff:127.0.0.1]"] {
            assert!(text.parse::<BaseUrl>().unwrap().is_loopback(), "{text}");
        }
        for text in ["http://localhost.example", "http://10.0.0.1", "http://[::2]", "http://128.0.0.1"] {
            assert!(!text.parse::<BaseUrl>().unwrap().is_loopback(), "{text}");
        }
        for text in
            ["cp.example", "ftp://hunter2@h", "http://", "http://h?hunter2", "http://h#x", "http://[x"]
        {
            let error = text.parse::<BaseUrl>().unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(without_user_info("a@b"), "a@b");
        assert_eq!(without_user_info("http://h/a@b"), "http://h/a@b");
    }

    #[test]
    fn a_url_without_a_scheme_is_told_what_is_missing() {
        for text in ["10.0.0.5:9090", "cp.example", "//cp.example"] {
            assert!(
                text.parse::<BaseUrl>().unwrap_err().contains("it must start with http:// or https://"),
                "{text}"
            );
        }
        // A name followed by a port looks like a scheme.
        assert!("localhost:9090".parse::<BaseUrl>().unwrap_err().contains("http:// nor an https://"));
    }
}
