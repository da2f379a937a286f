//! A key of the ControlPlane, or of an impostor.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

pub(crate) struct SigningKey {
    private: EncodingKey,
    kid: String,
    /// The public half as PEM.
    pub(crate) public_pem: String,
}

impl SigningKey {
    pub(crate) fn new(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("an RSA key");
        let private = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).expect("a key that signs");
        Self { private, kid: kid.to_owned(), public_pem: pair.public_key_pem() }
    }

    fn header(&self, algorithm: Algorithm) -> Header {
        Header { kid: Some(self.kid.clone()), ..Header::new(algorithm) }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        jsonwebtoken::encode(&self.header(Algorithm::RS256), claims, &self.private).expect("a token")
    }

    /// Signs with HMAC, using the public key as the secret.
    pub(crate) fn sign_with_public_bytes(&self, claims: &Value) -> String {
        let secret = EncodingKey::from_secret(self.public_pem.as_bytes());
        jsonwebtoken::encode(&self.header(Algorithm::HS256), claims, &secret).expect("a token")
    }

    /// The public half as a JWK.
    pub(crate) fn jwk(&self) -> Value {
        let jwk = Jwk::from_encoding_key(&self.private, Algorithm::RS256).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(self.kid);
        jwk
    }

    pub(crate) fn key_set(&self) -> Value {
        json!({"keys": [self.jwk()]})
    }
}
