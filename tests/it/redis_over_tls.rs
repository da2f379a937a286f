//! Goal: `rediss://` with a private authority, with and without a client certificate, and certificates renewed at run time;
//! a Unix socket. Method: a real redis-server with a TLS port; generated certificates.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::process::Signal;

use super::harness::{Agent, Port, RedisServer, Sandbox, Stage, USAGE, free_port, load, until};

/// Files with an authority's certificate, and a certificate issued by it.
struct Papers {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    _dir: tempfile::TempDir,
}

fn papers() -> Papers {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.not_after = date_time_ymd(2040, 1, 1);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Not the default name, which the certificate also has: it would look self-signed.
    authority.distinguished_name.push(DnType::CommonName, "Authority");
    let authority_key = KeyPair::generate().unwrap();
    let ca = file("ca.pem", authority.self_signed(&authority_key).unwrap().pem());
    let issuer = Issuer::new(authority, authority_key);
    let key_pair = KeyPair::generate().unwrap();
    let mut of_server = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    of_server.not_after = date_time_ymd(2030, 1, 1);
    let cert = file("cert.pem", of_server.signed_by(&key_pair, &issuer).unwrap().pem());
    let key = file("key.pem", key_pair.serialize_pem());
    Papers { ca, cert, key, _dir: dir }
}

impl Papers {
    /// Replaces these files by others.
    fn replace_by(&self, others: &Papers) {
        for (old, new) in [(&self.ca, &others.ca), (&self.cert, &others.cert), (&self.key, &others.key)] {
            std::fs::copy(new, old).unwrap();
        }
    }
}

/// A redis-server that also speaks TLS, and that port.
async fn tls_server(papers: &Papers, auth_clients: &str) -> (RedisServer, Port) {
    let port = free_port();
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let mut redis = RedisServer::with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-ca-cert-file",
        &text(&papers.ca),
        "--tls-cert-file",
        &text(&papers.cert),
        "--tls-key-file",
        &text(&papers.key),
        "--tls-auth-clients",
        auth_clients,
    ]);
    redis.restart().await;
    (redis, port)
}

async fn delivers_one(redis: RedisServer, sandbox: Sandbox, mut agent: Agent) -> Stage {
    agent.start();
    agent.ready().await;
    redis.push(USAGE, &[load::usage("s", 0)]).await;
    let mut stage = Stage { redis, sandbox, agent };
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 1);
    stage
}

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_and_the_agent_shows_its_certificate() {
    let papers = papers();
    let (redis, port) = tls_server(&papers, "yes").await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("rediss://localhost:{port}/0"));
    agent.set("REDIS_CA_FILE", papers.ca.to_str().unwrap());
    agent.set("REDIS_CLIENT_CERT_FILE", papers.cert.to_str().unwrap());
    agent.set("REDIS_CLIENT_KEY_FILE", papers.key.to_str().unwrap());
    let stage = delivers_one(redis, sandbox, agent).await;
    let metrics = stage.agent.metrics().await;
    for (credential, year) in [("redis_ca", 2040), ("redis_client", 2030)] {
        let end = metrics.sum("dataplane_credential_expiry_timestamp_seconds", &[("credential", credential)]);
        assert_eq!(end as i64, date_time_ymd(year, 1, 1).unix_timestamp(), "{credential}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_named_by_check_with_what_to_set() {
    let papers = papers();
    let ((_redis, port), sandbox) = (tls_server(&papers, "yes").await, Sandbox::start(&[]));
    let mut agent = Agent::new(&RedisServer::stopped(), &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("rediss://localhost:{port}/0"));
    let ca = ("REDIS_CA_FILE", papers.ca.to_str().unwrap());
    for (settings, named) in [(&[][..], "REDIS_CA_FILE"), (&[ca][..], "REDIS_CLIENT_CERT_FILE")] {
        let said = agent.command(settings, &["check"]).await;
        let line = said.out.lines().skip_while(|line| !line.starts_with("FAILED   redis ")).nth(1);
        assert!(line.is_some_and(|line| line.contains(named)), "{named}: {said:?}");
    }
}

#[tokio::test]
async fn new_certificates_are_loaded_at_run_time() {
    for told in [true, false] {
        let (of_server, of_agent, fresh) = (papers(), papers(), papers());
        of_agent.replace_by(&of_server);
        let (mut redis, port) = tls_server(&of_server, "yes").await;
        let sandbox = Sandbox::start(&[]);
        let mut agent = Agent::new(&redis, &sandbox.url);
        agent.unset("REDIS_PORT");
        agent.set("REDIS_URL", &format!("rediss://localhost:{port}/0"));
        agent.set("REDIS_CA_FILE", of_agent.ca.to_str().unwrap());
        agent.set("REDIS_CLIENT_CERT_FILE", of_agent.cert.to_str().unwrap());
        agent.set("REDIS_CLIENT_KEY_FILE", of_agent.key.to_str().unwrap());
        agent.start();
        agent.ready().await;
        redis.kill();
        of_server.replace_by(&fresh);
        redis.restart().await;
        until("the agent does not trust the new authority yet", async || {
            let health = agent.health().await?;
            let reason = health["components"]["redis"]["reason"].as_str()?.to_lowercase();
            reason.contains("certificate").then_some(())
        })
        .await;
        of_agent.replace_by(&fresh);
        if told {
            agent.signal(Signal::HUP);
        }
        agent.ready().await;
        redis.push(USAGE, &[load::usage("s", 0)]).await;
        let mut stage = Stage { redis, sandbox, agent };
        stage.drained().await;
        assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 1);
        let log = stage.agent.log();
        assert!(log.contains("reloaded"), "{log}");
    }
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_gets_no_data() {
    let papers = papers();
    let (redis, port) = tls_server(&papers, "no").await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("rediss://:hunter2@localhost:{port}/0"));
    let other = self::papers();
    agent.set("REDIS_CA_FILE", other.ca.to_str().unwrap());
    agent.start();
    until("health names the certificate", async || {
        let health = agent.health().await?;
        let reason = health["components"]["redis"]["reason"].as_str()?.to_lowercase();
        reason.contains("certificate").then_some(())
    })
    .await;
    assert!(!agent.log().contains("hunter2"), "{}", agent.log());
    // With the right authority it is a server like any other.
    agent.stop().await;
    agent.set("REDIS_URL", &format!("rediss://localhost:{port}/0"));
    agent.set("REDIS_CA_FILE", papers.ca.to_str().unwrap());
    drop(delivers_one(redis, sandbox, agent).await);
}

#[tokio::test]
async fn a_unix_socket_works() {
    let mut redis = RedisServer::with(&["--unixsocket", "redis.sock"]);
    redis.restart().await;
    let sandbox = Sandbox::start(&[]);
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.unset("REDIS_PORT");
    agent.set("REDIS_URL", &format!("unix://{}?db=0", redis.dir().join("redis.sock").display()));
    drop(delivers_one(redis, sandbox, agent).await);
}
