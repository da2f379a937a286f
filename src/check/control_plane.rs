//! Checks that the `ControlPlane` is reachable, is the right service, and accepts the credentials. Sends two harmless requests.

use std::time::Duration;

use super::REPORT;
use crate::config::{Config, ProxyDecision};
use crate::control_plane::{BadAnswer, CallError, Client, Failure, Meaning, TlsProblem};
use crate::telemetry::finding::{Finding, FindingState};

const REACH: &str = "control_plane";
const CREDENTIALS: &str = "credentials";
/// Advice for an answer that no ControlPlane gives.
const SOMEBODY_ELSE: &str = "a captive portal, a proxy or another server answers instead: sign in to the portal, or check CONTROL_PLANE_URL";
/// Servers usually tolerate clocks this far apart.
const CLOCK_SECONDS: i64 = 30;

pub(super) async fn probe(config: &Config) -> Vec<Finding> {
    let settings = config.control_plane.client_settings(&config.identity, 1);
    // Building the client reads certificates.
    let client = match tokio::task::spawn_blocking(|| Client::new(settings)).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => {
            return vec![Finding::failed(REACH, error.to_string(), "correct the setting or file named here")];
        }
        Err(error) => return vec![Finding::failed(REACH, error.to_string(), REPORT)],
    };
    let mut url = format!("{:?}", config.control_plane.url);
    let mut when_ill =
        "nothing to do on this machine: records wait in the outbox until the ControlPlane recovers";
    let mut proxy_advice = None;
    if let ProxyDecision::Through { settings, .. } = &config.control_plane.proxy {
        proxy_advice = Some(
            "check the proxy's host, port, user and password in that variable, and that it permits and reaches the ControlPlane; or add the ControlPlane's host to NO_PROXY",
        );
        url = format!("{url} (through the proxy {settings})");
        when_ill = "try without the proxy: if that works, fix the proxy or add the host to NO_PROXY; \
                    records wait in the outbox";
    }
    let begun = std::time::Instant::now();
    let health = client.health().await;
    let took = begun.elapsed();
    let reached = reached(&url, &health, took, when_ill, proxy_advice);
    if reached.state == FindingState::Failed {
        return vec![reached];
    }
    let mut found = vec![reached, credentials(&health, client.commands().await.map(drop))];
    let skew = client.clock_skew().num_seconds();
    if skew.abs() > CLOCK_SECONDS {
        found.push(Finding::warning(
            "clock",
            format!(
                "this machine's clock is {} s {} the ControlPlane's",
                skew.abs(),
                if skew > 0 { "behind" } else { "ahead of" }
            ),
            "synchronise the clock (chrony or systemd-timesyncd): timestamps on bills come from it",
        ));
    }
    found
}

/// Judges the connection by the first answer.
fn reached(
    url: &str,
    health: &Result<(), CallError>,
    took: Duration,
    when_ill: &str,
    proxy_advice: Option<&str>,
) -> Finding {
    let well = || Finding::ok(REACH, format!("{url} answers in {} ms", took.as_millis()));
    let (status, meaning) = match health {
        Ok(()) => return well(),
        Err(CallError::Failed(failure)) => return unreached(url, failure, proxy_advice),
        Err(CallError::BadAnswer(error)) => {
            return Finding::failed(REACH, format!("{url} answers, but {error}"), SOMEBODY_ELSE);
        }
        Err(CallError::Status { status, meaning, .. }) => (status, meaning),
    };
    let answers = format!("{url} answers {status}");
    match meaning {
        Meaning::Foreign => Finding::failed(
            REACH,
            format!("{answers}, but the answer is not a ControlPlane's"),
            SOMEBODY_ELSE,
        ),
        Meaning::Mismatched => Finding::failed(
            REACH,
            format!("{answers}, but the answer belongs to another request"),
            "a proxy or load balancer mixes up answers: have it fixed, or bypass it",
        ),
        Meaning::Misconfigured if (300..400).contains(status) => Finding::failed(
            REACH,
            format!("{answers}, a redirect"),
            "set CONTROL_PLANE_URL to the redirect's target: the agent follows no redirects, to keep credentials on one host",
        ),
        Meaning::Misconfigured => Finding::failed(
            REACH,
            format!("{answers}: the URL or a hop on the way is wrong"),
            "check CONTROL_PLANE_URL, and any proxy or load balancer",
        ),
        Meaning::Failing | Meaning::Overloaded => Finding::warning(
            REACH,
            format!("{url} answers {status}: the ControlPlane has a problem"),
            when_ill,
        ),
        Meaning::Refused => Finding::failed(REACH, format!("{answers} to a health check"), SOMEBODY_ELSE),
        // Credentials and routes are judged by the second answer.
        Meaning::Delivered
        | Meaning::Duplicate
        | Meaning::InProgress
        | Meaning::NotFound
        | Meaning::Credentials => well(),
    }
}

/// Explains why there was no answer.
fn unreached(url: &str, failure: &Failure, proxy_advice: Option<&str>) -> Finding {
    let advice = match (failure, proxy_advice) {
        // The agent connects only to the proxy.
        (Failure::Dns(_) | Failure::Unreachable(_), Some(advice)) => advice,
        _ => advice_on(failure),
    };
    Finding::failed(REACH, format!("{url}: {failure}"), advice)
}

fn advice_on(failure: &Failure) -> &'static str {
    match failure {
        Failure::Dns(_) => "check the host in CONTROL_PLANE_URL, and this machine's DNS",
        Failure::Unreachable(_) => "check the host and port in CONTROL_PLANE_URL, and firewalls on the way",
        Failure::Timeout { .. } => {
            "check firewalls on the way, or raise CONTROL_PLANE_TIMEOUT if the ControlPlane is that slow"
        }
        Failure::Tls(TlsProblem::Expired | TlsProblem::NotYetValid) => {
            "have the ControlPlane's certificate renewed, or set this machine's clock"
        }
        Failure::Tls(TlsProblem::WrongHost) => "use the host name of its certificate in CONTROL_PLANE_URL",
        Failure::Tls(TlsProblem::UnknownAuthority) => {
            "set CONTROL_PLANE_CA_FILE to the PEM file of its certificate authority"
        }
        Failure::Tls(TlsProblem::ClientCertificate) => {
            "set CONTROL_PLANE_CLIENT_CERT_FILE and CONTROL_PLANE_CLIENT_KEY_FILE to a client certificate it accepts"
        }
        Failure::Tls(TlsProblem::NotTls) => {
            "check the port, or use http:// if the ControlPlane does not use TLS"
        }
        Failure::Tls(_) => "check the ControlPlane's TLS version: 1.2 or newer is required",
        Failure::Cut(_) | Failure::NotHttp(_) => {
            "check the port in CONTROL_PLANE_URL: another service listens there"
        }
        Failure::Token(_) => "check CONTROL_PLANE_JWT_KEY and CONTROL_PLANE_JWT_ALGORITHM",
        Failure::Unsendable(_) => "check CONTROL_PLANE_URL",
    }
}

/// Judges the credentials by both answers. The second request always needs them.
fn credentials(health: &Result<(), CallError>, commands: Result<(), CallError>) -> Finding {
    for answered in [health, &commands] {
        if let Err(CallError::Status { status, meaning: Meaning::Credentials, .. }) = answered {
            return Finding::failed(
                CREDENTIALS,
                format!("refused: {status}"),
                "check CONTROL_PLANE_API_KEY or CONTROL_PLANE_JWT_KEY, CONTROL_PLANE_AUTH and API_KEY_HEADER",
            );
        }
    }
    match commands {
        // A list of commands that is too long still shows that the credentials were accepted.
        Ok(()) | Err(CallError::BadAnswer(BadAnswer::TooLong)) => Finding::ok(CREDENTIALS, "accepted"),
        Err(CallError::Status { meaning: Meaning::NotFound, .. }) if health.is_ok() => {
            Finding::ok(CREDENTIALS, "accepted; this server is not registered yet")
        }
        Err(CallError::Status { meaning: Meaning::NotFound, .. }) => Finding::failed(
            CREDENTIALS,
            "the API was not found (404)",
            "check CONTROL_PLANE_URL: the API must be at /api/v1/… below it",
        ),
        Err(CallError::BadAnswer(error)) => {
            Finding::failed(CREDENTIALS, format!("unexpected answer: {error}"), SOMEBODY_ELSE)
        }
        Err(
            error @ CallError::Status {
                meaning: Meaning::Foreign | Meaning::Mismatched | Meaning::Misconfigured,
                ..
            },
        ) => Finding::failed(CREDENTIALS, format!("the request was {error}"), SOMEBODY_ELSE),
        Err(error) => Finding::warning(
            CREDENTIALS,
            format!("unknown: {error}"),
            "run this check again when the ControlPlane is reachable",
        ),
    }
}
