//! When credentials and trusted certificates expire.
//!
//! Only one date of a certificate is needed, and the certificate's user has parsed it completely. So this code skips over
//! the rest instead of depending on a parser. A certificate it cannot read has no expiry here, with no other effect.

use chrono::NaiveDateTime;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

/// The expiry of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The credential's name, as in the metric.
    pub credential: &'static str,
    /// Seconds since the Unix epoch.
    pub at: i64,
}

/// The expiry of a bundle of authorities. Any one of them suffices, so the last one counts: an old authority left beside
/// its successor does no harm.
pub(crate) fn of_authorities(credential: &'static str, pem: &[u8]) -> Option<Expiry> {
    not_after(pem).max().map(|at| Expiry { credential, at })
}

/// The expiry of a chain: that of its first certificate to expire.
pub(crate) fn of_chain(credential: &'static str, pem: &[u8]) -> Option<Expiry> {
    not_after(pem).min().map(|at| Expiry { credential, at })
}

/// The expiry of a key that is a JWT, if it has one.
pub(crate) fn of_token(credential: &'static str, token: &str) -> Option<Expiry> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    // No decision depends on it: the token is verified by its recipient.
    let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token.trim()).ok()?;
    Some(Expiry { credential, at: claims.exp as i64 })
}

fn not_after(pem: &[u8]) -> impl Iterator<Item = i64> {
    CertificateDer::pem_slice_iter(pem).filter_map(|certificate| not_after_of(&certificate.ok()?))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// RFC 5280 §4.1: `Certificate { TBSCertificate { [0] version?, serialNumber, signature, issuer, validity, … }, … }`.
fn not_after_of(der: &[u8]) -> Option<i64> {
    let mut certificate = Der(der).take(SEQUENCE)?;
    let mut body = certificate.take(SEQUENCE)?;
    if body.0.first() == Some(&VERSION) {
        body.take(VERSION)?;
    }
    body.take(INTEGER)?;
    body.take(SEQUENCE)?;
    body.take(SEQUENCE)?;
    let mut validity = body.take(SEQUENCE)?;
    validity.next()?;
    match validity.next()? {
        // Two-digit years from 50 to 99 belong to the last century.
        (UTC_TIME, Der(time)) => {
            let century = if *time.first()? < b'5' { "20" } else { "19" };
            seconds(&format!("{century}{}", std::str::from_utf8(time).ok()?))
        }
        (GENERALIZED_TIME, Der(time)) => seconds(std::str::from_utf8(time).ok()?),
        _ => None,
    }
}

fn seconds(time: &str) -> Option<i64> {
    Some(NaiveDateTime::parse_from_str(time, "%Y%m%d%H%M%SZ").ok()?.and_utc().timestamp())
}

/// Unparsed DER: a sequence of tags, lengths and contents.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, Der<'a>)> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let mut length = usize::from(first);
        if first >= 0x80 {
            let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 4 {
                return None;
            }
            length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
            rest = after;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Der(value)))
    }

    fn take(&mut self, wanted: u8) -> Option<Der<'a>> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(until: i32) -> rcgen::Certificate {
        let mut params = CertificateParams::new(["edge.example".to_owned()]).unwrap();
        params.not_before = date_time_ymd(1960, 1, 1);
        params.not_after = date_time_ymd(until, 3, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn first_of_march(year: i32) -> i64 {
        chrono::NaiveDate::from_ymd_opt(year, 3, 1)
            .unwrap()
            .and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp()
    }

    #[test]
    fn a_certificates_end_is_read_in_both_forms_of_time() {
        for year in [1999, 2000, 2027, 2049, 2050, 2051, 2120, 9999] {
            assert_eq!(not_after_of(certificate(year).der()), Some(first_of_march(year)), "{year}");
        }
    }

    #[test]
    fn a_bundle_ends_with_its_last_authority_and_a_chain_with_its_first_certificate() {
        let pem =
            [certificate(2031).pem(), "junk\n".into(), certificate(2029).pem(), certificate(2030).pem()];
        let pem = pem.concat();
        assert_eq!(of_authorities("a", pem.as_bytes()).unwrap().at, first_of_march(2031));
        assert_eq!(of_chain("a", pem.as_bytes()).unwrap().at, first_of_march(2029));
        assert_eq!(of_chain("a", b"no certificate"), None);
    }

    #[test]
    fn a_key_that_is_a_token_has_an_end_and_another_has_none() {
        let token = |claims: serde_json::Value| {
            let key = jsonwebtoken::EncodingKey::from_secret(b"secret");
            jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
        };
        let ends = token(serde_json::json!({"exp": 1_900_000_000}));
        assert_eq!(of_token("k", &format!("{ends}\n")), Some(Expiry { credential: "k", at: 1_900_000_000 }));
        let endless = token(serde_json::json!({"sub": "edge"}));
        for key in [endless.as_str(), "s3cret", "a.b.c", "", "sk.live.key"] {
            assert_eq!(of_token("k", key), None, "{key}");
        }
    }

    #[test]
    fn every_authority_of_this_system_has_an_end() {
        // The paths on Debian and its derivatives, Fedora, and SUSE.
        let places = [
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/ca-bundle.pem",
        ];
        let bundle = places.iter().find_map(|place| std::fs::read(place).ok());
        let bundle = bundle.expect("authorities of this system: is ca-certificates installed?");
        let certificates = CertificateDer::pem_slice_iter(&bundle).count();
        assert!(certificates > 10, "{certificates}");
        assert_eq!(not_after(&bundle).count(), certificates);
    }

    proptest! {
        #[test]
        fn whatever_is_no_certificate_has_no_end(bytes in prop::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, byte: u8) {
            prop_assert_eq!(not_after_of(&bytes), None);
            // A damaged certificate may have any expiry or none, but must not cause a panic.
            let mut der = certificate(2030).der().to_vec();
            let at = at.index(der.len());
            der[at] = byte;
            let _ = not_after_of(&der);
            let _ = not_after_of(&der[..at]);
        }
    }
}
