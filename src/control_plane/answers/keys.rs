//! The keys that sign commands.

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use serde::Deserialize;
use serde_json::Value;

use super::BadAnswer;

/// Parses a JWK Set, under `data` or bare. Keys of unknown types are ignored, as RFC 7517 §5 requires.
pub fn parse_key_set(body: &[u8]) -> Result<JwkSet, BadAnswer> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum KeySetAnswer {
        Wrapped { data: Keys },
        Bare(Keys),
    }
    #[derive(Deserialize)]
    struct Keys {
        keys: Vec<Value>,
    }
    let (KeySetAnswer::Wrapped { data: Keys { keys } } | KeySetAnswer::Bare(Keys { keys })) =
        serde_json::from_slice(body)?;
    Ok(JwkSet {
        keys: keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).filter(is_known).collect(),
    })
}

fn is_known(key: &Jwk) -> bool {
    !matches!(key.algorithm, AlgorithmParameters::Other(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_under_data_or_bare_and_unknown_ones_are_passed_over() {
        let keys = r#"{"keys":[{"kty":"oct","k":"AAAA","kid":"1"},{"kty":"new"}, 7,
            {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"2"}]}"#;
        let bare = parse_key_set(keys.as_bytes()).unwrap();
        assert_eq!(bare.keys.len(), 2);
        assert!(bare.find("1").is_some() && bare.find("2").is_some());
        let wrapped = format!(r#"{{"success":true,"data":{keys}}}"#);
        assert_eq!(parse_key_set(wrapped.as_bytes()).unwrap(), bare);
        for body in ["", "{}", "[]", r#"{"data":{}}"#, r#"{"keys":7}"#] {
            assert!(parse_key_set(body.as_bytes()).is_err(), "{body}");
        }
    }
}
