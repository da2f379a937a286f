//! A link's settings and their syntax: `rtt=100ms,rate=10mbit,queue=256k,window=4m`.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

/// A modem's queue, each way.
const DEFAULT_QUEUE: usize = 256 << 10;
/// Linux' default limit of bytes in flight per connection: 40 MiB/s at 100 ms.
const DEFAULT_WINDOW: usize = 4 << 20;
/// The longest round trip accepted.
const MAX_RTT: Duration = Duration::from_secs(60);
/// The largest queue and window.
const MAX_BYTES: usize = 1 << 30;

/// The duration of a sender's turn; at least one packet.
const CHUNK: Duration = Duration::from_millis(5);
const MIN_CHUNK: usize = 1448;
pub(super) const MAX_CHUNK: usize = 64 << 10;

/// A link's round trip, rate and bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Both directions together, without queueing.
    pub rtt: Duration,
    /// Bits per second, each way; `None`: unlimited.
    pub rate: Option<NonZeroU64>,
    /// Bytes queued each way, for all connections.
    pub queue: usize,
    /// Bytes of one connection in flight, each way.
    pub window: usize,
}

/// Why a link's settings are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: a link is written like rtt=100ms,rate=10mbit,queue=256k,window=4m, each part optional")]
pub struct BadLink(String);

impl Default for Settings {
    fn default() -> Self {
        Self { rtt: Duration::ZERO, rate: None, queue: DEFAULT_QUEUE, window: DEFAULT_WINDOW }
    }
}

impl Settings {
    /// Bytes sent per turn.
    pub(super) fn chunk(&self) -> usize {
        let of_rate = |rate: NonZeroU64| (rate.get() as f64 / 8.0 * CHUNK.as_secs_f64()) as usize;
        self.rate.map_or(MAX_CHUNK, of_rate).clamp(MIN_CHUNK, MAX_CHUNK).min(self.window)
    }
}

impl FromStr for Settings {
    type Err = BadLink;

    fn from_str(text: &str) -> Result<Self, BadLink> {
        let mut settings = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let bad = || BadLink(part.to_owned());
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            match name {
                "rtt" => {
                    let seconds = quantity(value, &[("ms", 1e-3), ("s", 1.0)]).ok_or_else(bad)?;
                    settings.rtt = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
                }
                "rate" => {
                    let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
                    let bits = quantity(value, &units).ok_or_else(bad)?;
                    settings.rate = Some(NonZeroU64::new(bits as u64).ok_or_else(bad)?);
                }
                "queue" => settings.queue = bytes(value).ok_or_else(bad)?,
                "window" => settings.window = bytes(value).ok_or_else(bad)?,
                _ => return Err(bad()),
            }
            if settings.rtt > MAX_RTT {
                return Err(bad());
            }
        }
        Ok(settings)
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rtt={}ms", self.rtt.as_secs_f64() * 1e3)?;
        if let Some(rate) = self.rate {
            write!(f, ",rate={rate}bit")?;
        }
        write!(f, ",queue={},window={}", self.queue, self.window)
    }
}

/// Parses a number with one of these units.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, unit) =
        units.iter().find_map(|&(name, unit)| text.strip_suffix(name).map(|number| (number, unit)))?;
    let number: f64 = number.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number * unit)
}

/// Parses a positive number of bytes.
fn bytes(text: &str) -> Option<usize> {
    let bytes = quantity(text, &[("k", 1024.0), ("m", 1_048_576.0), ("", 1.0)])? as usize;
    (1..=MAX_BYTES).contains(&bytes).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_as_it_is_written() {
        let link: Settings = "rtt=100ms,rate=1.5mbit,queue=64k,window=1m".parse().unwrap();
        let expected = Settings {
            rtt: Duration::from_millis(100),
            rate: NonZeroU64::new(1_500_000),
            queue: 65_536,
            window: 1_048_576,
        };
        assert_eq!(link, expected);
        assert_eq!(link.to_string().parse(), Ok(link));
        assert_eq!("".parse(), Ok(Settings::default()));
        assert_eq!(Settings::default().to_string().parse(), Ok(Settings::default()));
        let half: Settings = "rtt=0.5s".parse().unwrap();
        assert_eq!((half.rtt, half.rate), (Duration::from_millis(500), None));
    }

    #[test]
    fn an_invalid_link_is_refused_naming_the_wrong_part() {
        for (text, part) in [
            ("rtt=100", "rtt=100"),
            ("rtt=61s", "rtt=61s"),
            ("rtt=-1ms", "rtt=-1ms"),
            ("rtt=1ms,rate=10", "rate=10"),
            ("rate=0bit", "rate=0bit"),
            ("queue=0", "queue=0"),
            ("window=2000m", "window=2000m"),
            ("loss=0.1", "loss=0.1"),
            ("fast", "fast"),
        ] {
            assert_eq!(text.parse::<Settings>(), Err(BadLink(part.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_turn_is_short_and_at_least_a_packet() {
        let chunk = |text: &str| text.parse::<Settings>().unwrap().chunk();
        assert_eq!((chunk("rate=1mbit"), chunk("rate=10mbit")), (1448, 6250));
        assert_eq!((chunk("rate=1gbit"), chunk(""), chunk("window=1000")), (65_536, 65_536, 1000));
    }
}
