//! Credentials: the API key's header, and tokens minted on demand.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use hyper::header::{HeaderName, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use tokio::time::Instant;

use super::clock::{ClockSkew, TOLERANCE};
use super::settings::JwtAlgorithm;
use crate::secret::Secret;

/// Lifetime of a token.
const LIFE: Duration = Duration::from_mins(5);

/// A token is replaced at 80 % of its life; the rest is for the request that carries it.
const RENEWED_AFTER: Duration = Duration::from_mins(4);

/// Why a key cannot sign tokens. Errors reveal nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Tokens are configured without a key.
    #[error("tokens need a signing key, but none is set")]
    Missing,
    /// PEM, but not a supported private key.
    #[error(
        "not a PEM private key: RSA (PKCS#1 or PKCS#8), EC P-256 (PKCS#8) or Ed25519 (PKCS#8); \
         `openssl pkcs8 -topk8 -nocrypt` converts to PKCS#8"
    )]
    Unknown,
    /// The key does not match the configured algorithm.
    #[error("CONTROL_PLANE_JWT_ALGORITHM is {configured:?}, but the key is for {by_key:?}")]
    Mismatch {
        /// The configured algorithm.
        configured: JwtAlgorithm,
        /// The key's algorithm.
        by_key: JwtAlgorithm,
    },
    /// The key cannot sign: it is damaged, too short, or on another curve.
    #[error("the key cannot sign with {algorithm:?}: {reason}")]
    Unusable {
        /// The algorithm tried.
        algorithm: JwtAlgorithm,
        /// The library's error.
        reason: String,
    },
}

/// Mints tokens and caches the current one.
pub(super) struct Tokens {
    key: EncodingKey,
    header: Header,
    subject: String,
    audience: String,
    current: Mutex<Option<MintedToken>>,
}

struct MintedToken {
    value: HeaderValue,
    minted_at: Instant,
    skew: TimeDelta,
}

impl MintedToken {
    /// Whether the token is valid now, given the clock skew.
    fn serves(&self, now: Instant, skew: TimeDelta) -> bool {
        now.duration_since(self.minted_at) < RENEWED_AFTER && (skew - self.skew).abs() <= TOLERANCE
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

impl Tokens {
    /// Takes and tests the key: a key that cannot sign is reported now, not at the first request.
    pub(super) fn new(
        key: &Secret,
        algorithm: Option<JwtAlgorithm>,
        key_id: Option<String>,
        subject: &str,
        audience: &str,
    ) -> Result<Self, KeyError> {
        let (key, by_key) = read_key(key)?;
        let algorithm = match algorithm {
            Some(configured) if configured != by_key => {
                return Err(KeyError::Mismatch { configured, by_key });
            }
            _ => by_key,
        };
        let mut header = Header::new(match algorithm {
            JwtAlgorithm::HS256 => Algorithm::HS256,
            JwtAlgorithm::RS256 => Algorithm::RS256,
            JwtAlgorithm::ES256 => Algorithm::ES256,
            JwtAlgorithm::EdDSA => Algorithm::EdDSA,
        });
        header.kid = key_id;
        let tokens = Self {
            key,
            header,
            subject: subject.to_owned(),
            audience: audience.to_owned(),
            current: Mutex::new(None),
        };
        tokens.mint(0).map_err(|reason| KeyError::Unusable { algorithm, reason })?;
        Ok(tokens)
    }

    /// The `Authorization` header to send now.
    pub(super) fn authorization(&self, clock: &ClockSkew) -> Result<HeaderValue, String> {
        let skew = clock.skew();
        let mut current = self.lock();
        if let Some(token) = &*current
            && token.serves(Instant::now(), skew)
        {
            return Ok(token.value.clone());
        }
        let value = self.mint(clock.corrected_unix_seconds())?;
        *current = Some(MintedToken { value: value.clone(), minted_at: Instant::now(), skew });
        Ok(value)
    }

    /// Discards the current token: the next request gets a new one.
    pub(super) fn renew(&self) {
        *self.lock() = None;
    }

    fn mint(&self, now: i64) -> Result<HeaderValue, String> {
        // A skew below the tolerance is not corrected: tokens are backdated to be valid even if our clock is ahead.
        let iat = now - TOLERANCE.num_seconds();
        let claims = Claims {
            iss: &self.subject,
            sub: &self.subject,
            aud: &self.audience,
            iat,
            nbf: iat,
            exp: iat + LIFE.as_secs() as i64,
            jti: crate::time::random_uuid().to_string(),
        };
        let token = jsonwebtoken::encode(&self.header, &claims, &self.key).map_err(|e| e.to_string())?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|e| e.to_string())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<MintedToken>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Determines a key's type from its form. PEM is never used as an HMAC secret: anyone with the public half could then sign.
fn read_key(key: &Secret) -> Result<(EncodingKey, JwtAlgorithm), KeyError> {
    let bytes = key.expose().as_bytes();
    if key.expose().trim().is_empty() {
        return Err(KeyError::Missing);
    }
    if !key.expose().contains("-----BEGIN ") {
        return Ok((EncodingKey::from_secret(bytes), JwtAlgorithm::HS256));
    }
    EncodingKey::from_rsa_pem(bytes)
        .map(|key| (key, JwtAlgorithm::RS256))
        .or_else(|_| EncodingKey::from_ec_pem(bytes).map(|key| (key, JwtAlgorithm::ES256)))
        .or_else(|_| EncodingKey::from_ed_pem(bytes).map(|key| (key, JwtAlgorithm::EdDSA)))
        .map_err(|_| KeyError::Unknown)
}

/// The API key's header, ready to send. Errors never quote the key.
pub(super) fn api_key_header(name: &str, key: &Secret) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name = HeaderName::try_from(name).map_err(|_| "API_KEY_HEADER is not a header name")?;
    let mut value = HeaderValue::try_from(key.expose())
        .map_err(|_| "it has characters that are not allowed in a header")?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_serves_for_four_fifths_of_its_life_and_while_the_clocks_stay() {
        let minted_at = Instant::now();
        let skew = TimeDelta::seconds(100);
        let token = MintedToken { value: HeaderValue::from_static("x"), minted_at, skew };
        for (age, drift, serves) in
            [(0, 0, true), (239, 0, true), (240, 0, false), (10, 5, true), (10, 6, false), (10, -6, false)]
        {
            let found = token.serves(minted_at + Duration::from_secs(age), skew + TimeDelta::seconds(drift));
            assert_eq!(found, serves, "{age} s, {drift} s");
        }
    }
}
