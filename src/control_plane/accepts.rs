//! The request encodings that a peer accepts according to its answer (RFC 9110 §12.5.3).

/// The encodings in an answer's `Accept-Encoding`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// gzip, by name or by `*`.
    pub gzip: bool,
    /// zstd, by name: `*` does not include it.
    pub zstd: bool,
}

impl Accepts {
    /// Parses the header's values; `None` if there are none.
    pub(super) fn read<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut values = values.into_iter().peekable();
        values.peek()?;
        let (mut gzip, mut zstd, mut any) = (None, false, false);
        for value in values {
            for item in value.split(|byte| *byte == b',') {
                let (name, is_accepted) = coding(item);
                match () {
                    () if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => {
                        gzip = Some(is_accepted);
                    }
                    () if name.eq_ignore_ascii_case(b"zstd") => zstd = is_accepted,
                    () if name == b"*" => any = is_accepted,
                    () => {}
                }
            }
        }
        Some(Self { gzip: gzip.unwrap_or(any), zstd })
    }
}

/// A coding's name, and whether its weight is above zero.
fn coding(item: &[u8]) -> (&[u8], bool) {
    let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    let is_accepted = parts.all(|parameter| {
        let Some(weight) = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q=")) else {
            return true;
        };
        std::str::from_utf8(weight).ok().and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q > 0.0)
    });
    (name, is_accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encodings_with_a_positive_weight_are_accepted() {
        let read = |values: &[&str]| {
            Accepts::read(values.iter().map(|value| value.as_bytes()))
                .map(|Accepts { gzip, zstd }| (gzip, zstd))
        };
        assert_eq!(read(&[]), None);
        for (value, accepts) in [
            ("", (false, false)),
            ("identity", (false, false)),
            ("gzip", (true, false)),
            ("X-GZIP, br", (true, false)),
            ("zstd", (false, true)),
            ("gzip;q=0.5 , Zstd ; q=1.0", (true, true)),
            ("gzip;q=0, zstd;q=0.000", (false, false)),
            ("gzip;q=x, zstd;Q=0.1", (false, true)),
            ("*", (true, false)),
            ("*;q=0", (false, false)),
            ("*, gzip;q=0", (false, false)),
            ("zstdx, xgzip", (false, false)),
        ] {
            assert_eq!(read(&[value]), Some(accepts), "{value:?}");
        }
        assert_eq!(read(&["gzip", "zstd"]), Some((true, true)));
    }
}
