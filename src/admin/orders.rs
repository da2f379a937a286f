//! Parameters of orders to a running agent, for `/admin` and signed commands.

use serde::{Deserialize, Serialize};

use crate::drain::RateLimit;
use crate::telemetry::log::Level;

/// The highest rate limit in requests per second, as for `DRAIN_RATE_LIMIT`.
const RATE_MOST: u32 = 1_000_000;

/// A request rate limit.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRateLimit {
    /// Requests per second; 0: no limit.
    #[schema(maximum = 1_000_000)]
    pub rate_limit: u32,
    /// Requests allowed at once after a pause; 0: as many as a tenth of a second allows.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    pub burst: u32,
}

impl NewRateLimit {
    /// The limit, or why it is invalid.
    pub fn limit(&self) -> Result<RateLimit, String> {
        if self.rate_limit.max(self.burst) > RATE_MOST {
            return Err(format!("at most {RATE_MOST}"));
        }
        Ok(RateLimit { per_second: self.rate_limit, burst: self.burst })
    }
}

/// The highest bandwidth limit in bytes per second, as for `DRAIN_BANDWIDTH`: 100 GiB.
const BANDWIDTH_MOST: u64 = 100 << 30;

/// A bandwidth limit.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBandwidth {
    /// Bytes per second; 0: no limit.
    #[schema(maximum = 107_374_182_400_u64)]
    pub bandwidth: u64,
}

impl NewBandwidth {
    /// The limit, or why it is invalid.
    pub fn limit(&self) -> Result<u64, String> {
        if self.bandwidth > BANDWIDTH_MOST {
            Err(format!("at most {BANDWIDTH_MOST}"))
        } else {
            Ok(self.bandwidth)
        }
    }
}

/// The log level.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LogLevel)]
pub struct LogLevelBody {
    /// The least severe level that is logged.
    pub level: Level,
}
