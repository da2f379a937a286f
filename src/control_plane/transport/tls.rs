//! TLS: trusted authorities, and our client certificate.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::control_plane::credentials::ClientError;
use crate::control_plane::settings::{HttpVersion, Settings, read_file};
use crate::secret::expiry::{self, Expiry};

/// TLS configurations. Each keeps its own tickets for resuming sessions.
#[derive(Clone)]
pub(in crate::control_plane) struct Tls {
    /// For the `ControlPlane`.
    pub(super) host: Arc<ClientConfig>,
    /// For a proxy, which is shown no client certificate and speaks HTTP/1.1.
    pub(super) proxy: Arc<ClientConfig>,
}

impl Tls {
    /// Reads the certificates named in the settings, even if TLS is not used: errors are reported at once.
    pub(in crate::control_plane) fn load(
        settings: &Settings,
        is_https: bool,
        expiries: &mut Vec<Expiry>,
    ) -> Result<Option<Self>, ClientError> {
        let authorities = settings.ca_file.as_ref().map(|path| {
            let pem = read_file(path)?;
            let found = certificates(&pem)?;
            if found.is_empty() {
                return Err(ClientError::Tls(format!("{} contains no PEM certificate", path.display())));
            }
            expiries.extend(expiry::of_authorities("control_plane_ca", &pem));
            Ok(found)
        });
        let authorities = authorities.transpose()?;
        let identity = match (&settings.client_cert_file, &settings.client_key_file) {
            (Some(certificate), Some(key)) => {
                let pem = read_file(certificate)?;
                expiries.extend(expiry::of_chain("control_plane_client", &pem));
                let chain = certificates(&pem)?;
                if chain.is_empty() {
                    let path = certificate.display();
                    return Err(ClientError::Tls(format!("{path} contains no PEM certificate")));
                }
                Some((chain, PrivateKeyDer::from_pem_slice(&read_file(key)?).map_err(wrong)?))
            }
            (None, None) => None,
            _ => return Err(ClientError::HalfAnIdentity),
        };
        let is_proxy_https =
            settings.proxy.as_ref().is_some_and(|proxy| proxy.url.expose().starts_with("https:"));
        // Plain HTTP needs no authorities: a host without any must not fail, nor keep them in memory.
        if !is_https && !is_proxy_https && authorities.is_none() && identity.is_none() {
            return Ok(None);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match authorities {
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for authority in authorities {
                    roots.add(authority).map_err(wrong)?;
                }
                WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider))
                    .build()
                    .map_err(wrong)?
            }
            None if is_https || is_proxy_https => {
                Arc::new(rustls_platform_verifier::Verifier::new(Arc::clone(&provider)).map_err(wrong)?)
            }
            None => WebPkiServerVerifier::builder_with_provider(
                RootCertStore::empty().into(),
                Arc::clone(&provider),
            )
            .build()
            .map_err(wrong)?,
        };
        let builder = || {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
            let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
            Ok::<_, ClientError>(builder.dangerous().with_custom_certificate_verifier(Arc::clone(&verifier)))
        };
        let proxy = builder()?.with_no_client_auth();
        let mut host = match identity {
            Some((chain, key)) => builder()?.with_client_auth_cert(chain, key).map_err(wrong)?,
            None => builder()?.with_no_client_auth(),
        };
        host.alpn_protocols = match settings.http {
            HttpVersion::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            HttpVersion::Http1 => vec![b"http/1.1".to_vec()],
            HttpVersion::Http2 => vec![b"h2".to_vec()],
        };
        Ok(Some(Self { host: host.into(), proxy: proxy.into() }))
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(wrong)
}

fn wrong(error: impl std::fmt::Display) -> ClientError {
    ClientError::Tls(error.to_string())
}
