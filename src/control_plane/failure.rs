//! Why an attempt got no answer: types for the drain, and text.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Why there is no answer. None of these contains a URL, a credential or a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The host's name could not be resolved.
    #[error("cannot resolve the host name: {0}")]
    Dns(String),
    /// No connection: refused, no route, or denied by a proxy.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// A TLS failure.
    #[error("TLS: {0}")]
    Tls(TlsProblem),
    /// No progress within the timeout.
    #[error("timed out {}", if *.connected { "waiting for the answer" } else { "connecting" })]
    Timeout {
        /// Whether a connection existed: if so, the peer may have processed the request.
        connected: bool,
    },
    /// The connection ended before the answer did. The peer may have processed the request.
    #[error("the answer was cut off: {0}")]
    Cut(String),
    /// The answer is not HTTP, or its headers are too large.
    #[error("the answer is not HTTP: {0}")]
    NotHttp(String),
    /// The token could not be signed.
    #[error("cannot sign a token: {0}")]
    Token(String),
    /// This request can never be sent: the record is at fault, not the link.
    #[error("cannot be sent: {0}")]
    Unsendable(&'static str),
}

impl Failure {
    /// A short fixed name, for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Dns(_) => "dns",
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::Timeout { .. } => "timeout",
            Self::Cut(_) => "cut",
            Self::NotHttp(_) => "not_http",
            Self::Token(_) => "token",
            Self::Unsendable(_) => "unsendable",
        }
    }
}

/// A problem with a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    /// Expired, or our clock is wrong.
    #[error("its certificate has expired, or this machine's clock is wrong")]
    Expired,
    /// Not valid yet, or our clock is behind.
    #[error("its certificate is not valid yet, or this machine's clock is wrong")]
    NotYetValid,
    /// Issued for another host.
    #[error("its certificate is for another host name")]
    WrongHost,
    /// Signed by an untrusted authority.
    #[error("its certificate is signed by an authority that is not trusted here")]
    UnknownAuthority,
    /// The peer requires a client certificate, or another one.
    #[error("it does not accept our client certificate, or requires one")]
    ClientCertificate,
    /// The peer does not use TLS on this port.
    #[error("the port does not speak TLS")]
    NotTls,
    /// The peer shares no version or cipher with us (TLS 1.2 at least).
    #[error("it offers only insecure TLS versions or ciphers")]
    Incompatible,
    /// Anything else: the library's error.
    #[error("{0}")]
    Other(String),
}

/// Classifies the failure of a request.
pub(super) fn classify(error: &hyper::Error) -> Failure {
    if let Some(tls) = find::<rustls::Error>(error) {
        return Failure::Tls(tls_problem(tls));
    }
    if error.is_timeout() {
        return Failure::Timeout { connected: true };
    }
    if error.is_parse() {
        return Failure::NotHttp(innermost(error));
    }
    Failure::Cut(innermost(error))
}

/// Classifies the failure of a TLS handshake.
pub(super) fn connecting(error: &io::Error) -> Failure {
    match find::<rustls::Error>(error) {
        Some(tls) => Failure::Tls(tls_problem(tls)),
        None => Failure::Unreachable(innermost(error)),
    }
}

fn tls_problem(error: &rustls::Error) -> TlsProblem {
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsProblem::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsProblem::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsProblem::WrongHost
            }
            // A bad signature: the authority has a trusted one's name, but another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => TlsProblem::UnknownAuthority,
            other => TlsProblem::Other(other.to_string()),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => TlsProblem::ClientCertificate,
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity => TlsProblem::Incompatible,
            _ => TlsProblem::Other(error.to_string()),
        },
        rustls::Error::PeerIncompatible(_) => TlsProblem::Incompatible,
        rustls::Error::InvalidMessage(_) => TlsProblem::NotTls,
        other => TlsProblem::Other(other.to_string()),
    }
}

/// An error's sources, outermost first. `io::Error` hides its inner error from `source`, so it is unwrapped explicitly.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|e| e.downcast_ref())
}

/// The text of the innermost error.
fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map_or_else(|| "unknown".to_owned(), ToString::to_string)
}
