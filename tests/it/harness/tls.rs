//! Certificates generated for one test, and the configuration of a server that uses them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// An authority with its certificate in a file.
pub(crate) struct Authority {
    dir: TempDir,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self { dir, certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// The file with its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate for `host`, valid from the first to the last of these years.
    pub(crate) fn sign(&self, host: &str, years: std::ops::Range<i32>) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([host.to_owned()]).expect("a host");
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        Pair { certificate: params.signed_by(&key, &self.issuer).expect("a certificate"), key }
    }

    /// A valid certificate.
    pub(crate) fn good(&self) -> Pair {
        self.sign("127.0.0.1", 2020..2100)
    }
}

impl Pair {
    /// Writes it to these files.
    pub(crate) fn write(&self, certificate: &Path, key: &Path) {
        std::fs::write(certificate, self.certificate.pem()).expect("a file");
        std::fs::write(key, self.key.serialize_pem()).expect("a file");
    }

    /// The text that no log may contain.
    pub(crate) fn secret(&self) -> String {
        self.key.serialize_pem()
    }

    /// A server's configuration with this certificate; `clients`: clients need a certificate of that authority.
    pub(crate) fn server(&self, clients: Option<&Authority>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder();
        let builder = if let Some(authority) = clients {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.clone()).expect("an authority");
            let verifier = WebPkiClientVerifier::builder(roots.into()).build().expect("a verifier");
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key");
        let config = builder.with_single_cert(vec![self.certificate.der().clone()], key);
        config.expect("a configuration").into()
    }
}
