//! Verifies that a command is the `ControlPlane`'s: a token with the same content, signed with one of its keys. Pure: keys
//! and time are arguments.

use clap::ValueEnum;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, OctetKeyPairType, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use crate::control_plane::Command;

/// A longer token is rejected: it repeats the parameters, and those of the longest command take a few KiB.
const TOKEN_BYTES: usize = 32 << 10;
/// Keys tried if a token does not name its key, or if several keys have that name.
const KEYS_TRIED: usize = 16;
/// How far `nbf` may be ahead: clocks agree no better.
const NOT_BEFORE_SECONDS: f64 = 5.0;

/// A command is remembered while its token is valid. A token valid for longer than any order needs would occupy the journal
/// indefinitely.
const LASTS_MOST_SECONDS: f64 = 366.0 * 86_400.0;

/// Signing algorithm of the tokens in commands. Verification keys are public, which excludes HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum CommandAlgorithm {
    /// RSA PKCS #1 v1.5 with SHA-256.
    RS256,
    /// RSA PKCS #1 v1.5 with SHA-384.
    RS384,
    /// RSA PKCS #1 v1.5 with SHA-512.
    RS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

/// Why a token is invalid. Errors never quote the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token is missing")]
    Missing,
    #[error("the token is not a signed JWT")]
    Malformed,
    #[error("the token is not signed with JWT_ALGORITHM")]
    Algorithm,
    #[error("the token requires an unsupported extension")]
    Critical,
    #[error("the token's key is not one of the ControlPlane's")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token lacks a claim, or a claim has the wrong type")]
    Claims,
    #[error("the token has expired")]
    Expired,
    #[error("the token is valid for more than a year")]
    Lasting,
    #[error("the token is not valid yet")]
    NotYet,
    #[error("the token is for another server")]
    Audience,
    #[error("the token is for another command")]
    Id,
    #[error("the token is for another command type")]
    Type,
    #[error("the token has other parameters")]
    Parameters,
}

/// What a valid token grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VerifiedToken {
    /// Expiry in seconds since the Unix epoch: until then the token could be replayed.
    pub(super) expires: i64,
}

/// Verifies tokens for one server and one algorithm.
#[derive(Clone, Debug)]
pub(super) struct TokenVerifier {
    pub(super) algorithm: Algorithm,
    /// `SERVER_ID`.
    pub(super) audience: String,
}

#[derive(Deserialize)]
struct CommandClaims {
    exp: f64,
    nbf: Option<f64>,
    aud: Value,
    jti: String,
    command_type: String,
    #[serde(default)]
    parameters: Value,
}

impl TokenVerifier {
    pub(super) fn new(algorithm: CommandAlgorithm, audience: &str) -> Self {
        let algorithm = match algorithm {
            CommandAlgorithm::RS256 => Algorithm::RS256,
            CommandAlgorithm::RS384 => Algorithm::RS384,
            CommandAlgorithm::RS512 => Algorithm::RS512,
            CommandAlgorithm::ES256 => Algorithm::ES256,
            CommandAlgorithm::ES384 => Algorithm::ES384,
            CommandAlgorithm::EdDSA => Algorithm::EdDSA,
        };
        Self { algorithm, audience: audience.to_owned() }
    }

    /// The command's token, after the checks that need no keys.
    pub(super) fn token<'a>(&self, command: &'a Command) -> Result<&'a str, TokenError> {
        let token = command.token.as_ref().ok_or(TokenError::Missing)?.expose();
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        // IMPORTANT: only the configured algorithm is allowed, whatever the token declares. The library does not know
        // `none`, and HMAC with the public key as its secret is not the configured algorithm.
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.alg != self.algorithm {
            return Err(TokenError::Algorithm);
        }
        // RFC 7515 §4.1.11: unknown critical extensions must be refused. We know none.
        if header.crit.is_some() { Err(TokenError::Critical) } else { Ok(token) }
    }

    /// Whether the token authorises exactly this command at this time.
    pub(super) fn verify(
        &self,
        command: &Command,
        keys: &JwkSet,
        now: i64,
    ) -> Result<VerifiedToken, TokenError> {
        let token = self.token(command)?;
        let claims = self.claims(token, keys)?;
        let now = now as f64;
        if !claims.exp.is_finite() {
            return Err(TokenError::Claims);
        }
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        if claims.exp > now + LASTS_MOST_SECONDS {
            return Err(TokenError::Lasting);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now + NOT_BEFORE_SECONDS) {
            return Err(TokenError::NotYet);
        }
        if !is_for(&claims.aud, &self.audience) {
            return Err(TokenError::Audience);
        }
        if claims.jti != command.command_id {
            return Err(TokenError::Id);
        }
        if claims.command_type != command.command_type {
            return Err(TokenError::Type);
        }
        if !are_same(&claims.parameters, &command.parameters) {
            return Err(TokenError::Parameters);
        }
        Ok(VerifiedToken { expires: claims.exp.ceil() as i64 })
    }

    /// The claims of a token signed by one of the keys.
    fn claims(&self, token: &str, keys: &JwkSet) -> Result<CommandClaims, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let mut validation = Validation::new(self.algorithm);
        // Expiry is judged by the ControlPlane's clock, and the audience more strictly than by the library.
        (validation.validate_exp, validation.validate_aud) = (false, false);
        validation.required_spec_claims.clear();
        let is_meant = |key: &&Jwk| header.kid.is_none() || key.common.key_id == header.kid;
        let usable = keys.keys.iter().filter(|key| is_usable(key, self.algorithm)).filter(is_meant);
        let mut is_named = false;
        for key in usable.take(KEYS_TRIED) {
            let Ok(key) = DecodingKey::from_jwk(key) else { continue };
            match decode::<Value>(token, &key, &validation) {
                Ok(data) => return CommandClaims::deserialize(data.claims).map_err(|_| TokenError::Claims),
                // The key has the right name, but two keys may share a name while one replaces the other.
                Err(_) => is_named = header.kid.is_some(),
            }
        }
        Err(if is_named { TokenError::Signature } else { TokenError::UnknownKey })
    }
}

/// Whether a key may verify signatures of this algorithm. Only the key's own type counts: an RSA key is never used as another
/// kind, and a symmetric key is never used.
fn is_usable(key: &Jwk, algorithm: Algorithm) -> bool {
    let fits = match (&key.algorithm, algorithm) {
        (AlgorithmParameters::RSA(_), Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512) => true,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES256) => key.curve == EllipticCurve::P256,
        (AlgorithmParameters::EllipticCurve(key), Algorithm::ES384) => key.curve == EllipticCurve::P384,
        (AlgorithmParameters::OctetKeyPair(key), Algorithm::EdDSA) => {
            key.key_type == OctetKeyPairType::OctetKeyPair && key.curve == EllipticCurve::Ed25519
        }
        _ => false,
    };
    let common = &key.common;
    fits && common.key_algorithm.is_none_or(|own| Algorithm::try_from(own).is_ok_and(|own| own == algorithm))
        && common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify))
}

/// Whether a token is for this server only.
fn is_for(audience: &Value, server_id: &str) -> bool {
    match audience {
        Value::String(one) => one == server_id,
        Value::Array(all) => matches!(all.as_slice(), [Value::String(one)] if one == server_id),
        _ => false,
    }
}

/// Whether the parameters of token and command are equal. Missing parameters equal an empty object.
fn are_same(claimed: &Value, given: &Value) -> bool {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    claimed == given || is_nothing(claimed) && is_nothing(given)
}
