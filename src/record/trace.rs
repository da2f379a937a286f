//! Decides which of a producer's strings may become headers of the request.

/// Whether a `correlation_id` is valid as a header: 1 to 128 visible ASCII characters.
pub(super) fn is_correlation_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a text is a W3C `traceparent`: version, trace id, parent id, flags. Later versions may append fields.
pub(super) fn is_traceparent(text: &str) -> bool {
    const LENGTHS: [usize; 4] = [2, 32, 16, 2];
    if !is_correlation_id(text) {
        return false;
    }
    let mut parts = text.split('-');
    for (i, length) in LENGTHS.into_iter().enumerate() {
        let Some(part) = parts.next() else { return false };
        let hexadecimal = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_an_id = i == 1 || i == 2;
        let all_zero = part.bytes().all(|byte| byte == b'0');
        if part.len() != length || !hexadecimal || (is_an_id && all_zero) {
            return false;
        }
    }
    !text.starts_with("ff") && (!text.starts_with("00") || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_can_be_a_header_is_a_correlation_id() {
        assert!(is_correlation_id("req-1/2"));
        assert!(is_correlation_id(&"x".repeat(128)));
        for bad in ["", "a b", "a\r\nb", "ä", "a\0", "\u{7f}", &"x".repeat(129)] {
            assert!(!is_correlation_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn only_the_w3c_form_is_a_traceparent() {
        assert!(is_traceparent(TRACEPARENT));
        assert!(is_traceparent(&TRACEPARENT.replacen("00", "01", 1)));
        assert!(is_traceparent(&format!("01{}-more", &TRACEPARENT[2..])));
        for bad in [
            "",
            "00",
            &TRACEPARENT[..54],
            &TRACEPARENT.to_uppercase(),
            &format!("{TRACEPARENT}-more"),
            &format!("ff{}", &TRACEPARENT[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &TRACEPARENT.replace('-', "_"),
        ] {
            assert!(!is_traceparent(bad), "{bad:?}");
        }
    }
}
