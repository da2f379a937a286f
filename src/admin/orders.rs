//! The forms of orders to a running agent, as `/admin` and signed commands have them.

use serde::{Deserialize, Serialize};

use crate::drain::RateLimit;
use crate::telemetry::log::Level;

/// The most requests a second that can be asked for, as with `DRAIN_RATE_LIMIT`.
const RATE_MOST: u32 = 1_000_000;

/// A limit of the rate of requests.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRateLimit {
    /// Requests a second; 0: no limit.
    #[schema(maximum = 1_000_000)]
    pub rate_limit: u32,
    /// How many may go at once after a pause; 0: as many as go in a tenth of a second.
    #[serde(default)]
    #[schema(maximum = 1_000_000)]
    pub burst: u32,
}

impl NewRateLimit {
    /// The limit, or what is wrong with it.
    pub fn limit(&self) -> Result<RateLimit, String> {
        if self.rate_limit.max(self.burst) > RATE_MOST {
            return Err(format!("at most {RATE_MOST}"));
        }
        Ok(RateLimit { per_second: self.rate_limit, burst: self.burst })
    }
}

/// The log's level.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LogLevel)]
pub struct LogLevelBody {
    /// The least severe level that is logged.
    pub level: Level,
}
