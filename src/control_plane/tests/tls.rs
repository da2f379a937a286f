//! TLS with generated certificates: which are trusted, which are not, and how errors are reported.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::*;

/// An authority generated for one test, with its certificate in a file.
pub(super) struct Authority {
    dir: TempDir,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(super) struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self::named(&Uuid::new_v4().to_string())
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { dir, certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sign(&self, host: &str, years: std::ops::Range<i32>) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    pub(super) fn good(&self) -> Pair {
        self.sign("127.0.0.1", 2020..2100)
    }

    /// A host's configuration with this certificate; `clients`: clients need a certificate of that authority.
    pub(super) fn server_config(pair: &Pair, clients: Option<&Self>) -> ServerConfig {
        let builder = ServerConfig::builder();
        let builder = if let Some(authority) = clients {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(pair.key.serialize_der()).unwrap();
        builder.with_single_cert(vec![pair.certificate.der().clone()], key).unwrap()
    }

    pub(super) async fn serve(pair: &Pair, clients: Option<&Self>) -> String {
        let config = Self::server_config(pair, clients);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let url = peer(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while receive(&mut stream).await.is_some() {
                    stream
                        .write_all(http("200 OK", "X-Correlation-ID: corr-1\r\n", "{}").as_bytes())
                        .await
                        .unwrap();
                }
            }
        })
        .await;
        url.replace("http://", "https://")
    }

    pub(super) fn settings(&self, url: &str) -> Settings {
        Settings { ca_file: Some(self.file("ca.pem")), ..settings(url) }
    }
}

async fn attempt(settings: Settings) -> Result<u16, Failure> {
    Client::new(settings).unwrap().deliver(delivery("s")).await.result.map(|response| response.status)
}

#[tokio::test]
async fn a_certificate_of_the_configured_authority_is_trusted() {
    let authority = Authority::new();
    let url = Authority::serve(&authority.good(), None).await;
    assert_eq!(attempt(authority.settings(&url)).await, Ok(200));
}

#[tokio::test]
async fn a_bad_certificate_is_named_for_what_is_wrong_with_it() {
    let authority = Authority::named("ours");
    for (pair, problem) in [
        (authority.sign("127.0.0.1", 2020..2021), TlsProblem::Expired),
        (authority.sign("127.0.0.1", 2099..2100), TlsProblem::NotYetValid),
        (authority.sign("other.example", 2020..2100), TlsProblem::WrongHost),
        (Authority::new().good(), TlsProblem::UnknownAuthority),
        (Authority::named("ours").good(), TlsProblem::UnknownAuthority),
    ] {
        let url = Authority::serve(&pair, None).await;
        assert_eq!(attempt(authority.settings(&url)).await, Err(Failure::Tls(problem)));
    }
}

#[tokio::test]
async fn without_a_configured_authority_only_the_systems_are_trusted() {
    let authority = Authority::new();
    let url = Authority::serve(&authority.good(), None).await;
    // On a system without any authorities, creating the client fails.
    if let Ok(client) = Client::new(settings(&url)) {
        let result = client.deliver(delivery("s")).await.result;
        assert_eq!(result, Err(Failure::Tls(TlsProblem::UnknownAuthority)));
    }
}

#[tokio::test]
async fn mutual_tls_shows_our_certificate_and_says_when_it_is_not_accepted() {
    let authority = Authority::new();
    let ours = authority.sign("edge-1", 2020..2100);
    std::fs::write(authority.file("client.pem"), ours.certificate.pem()).unwrap();
    std::fs::write(authority.file("client.key"), ours.key.serialize_pem()).unwrap();
    let with_identity = |url: &str| Settings {
        client_cert_file: Some(authority.file("client.pem")),
        client_key_file: Some(authority.file("client.key")),
        ..authority.settings(url)
    };
    let url = Authority::serve(&authority.good(), Some(&authority)).await;
    assert_eq!(attempt(with_identity(&url)).await, Ok(200));
    let refused = Err(Failure::Tls(TlsProblem::ClientCertificate));
    assert_eq!(attempt(authority.settings(&url)).await, refused);
    let strict = Authority::serve(&authority.good(), Some(&Authority::new())).await;
    assert_eq!(attempt(with_identity(&strict)).await, refused);
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_in_and_a_damaged_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let url = Authority::serve(&new.good(), None).await;
    let client = Client::new(old.settings(&url)).unwrap();
    assert!(client.deliver(delivery("s")).await.result.is_err());
    std::fs::copy(new.file("ca.pem"), old.file("ca.pem")).unwrap();
    client.reload().unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(old.file("ca.pem"), damaged).unwrap();
    assert!(matches!(client.reload(), Err(ClientError::Tls(_))));
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
}

#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_said_to_be_so() {
    let authority = Authority::new();
    let url = peer(|mut stream| async move {
        let mut hello = [0; 64];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(http("400 Bad Request", "", "").as_bytes()).await;
    })
    .await;
    let result = attempt(authority.settings(&url.replace("http://", "https://"))).await;
    assert_eq!(result, Err(Failure::Tls(TlsProblem::NotTls)));
}

#[tokio::test]
async fn an_endless_handshake_is_a_connect_timeout() {
    let authority = Authority::new();
    let url = peer(|mut stream| async move { while receive(&mut stream).await.is_some() {} }).await;
    let hasty = Settings {
        timeout: Duration::from_millis(400),
        ..authority.settings(&url.replace("http://", "https://"))
    };
    assert_eq!(attempt(hasty).await, Err(Failure::Timeout { connected: false }));
}
