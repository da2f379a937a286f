//! Signs commands as the `ControlPlane` does, with a key created on first use.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use axum::http::StatusCode;
use chrono::Utc;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::delivery::Refusal;

/// Validity of a token.
const LIFE_SECONDS: i64 = 300;

/// A private key and its public form.
pub(super) struct Signer {
    key: EncodingKey,
    public: Jwk,
}

impl Signer {
    /// Creates a key, which takes a moment.
    pub(super) fn new() -> Result<Self, Refusal> {
        Self::generate().map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    fn generate() -> anyhow::Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048)?;
        let der = AsDer::<Pkcs8V1Der<'static>>::as_der(&pair)?;
        let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", der.as_ref()));
        let key = EncodingKey::from_rsa_pem(pem.as_bytes())?;
        let mut public = Jwk::from_encoding_key(&key, Algorithm::RS256)?;
        public.common.key_id = Some(Uuid::new_v4().to_string());
        Ok(Self { key, public })
    }

    /// The published keys.
    pub(super) fn key_set(&self) -> Value {
        json!({"keys": [self.public]})
    }

    /// The token of a command for one server.
    pub(super) fn token(&self, command: &Map<String, Value>) -> Result<String, Refusal> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.public.common.key_id);
        let claims = json!({
            "iss": "sandbox",
            "aud": command.get("server_id"),
            "jti": command.get("command_id"),
            "exp": Utc::now().timestamp() + LIFE_SECONDS,
            "command_type": command.get("command_type"),
            "parameters": command.get("parameters"),
        });
        jsonwebtoken::encode(&header, &claims, &self.key)
            .map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }
}
