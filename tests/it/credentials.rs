//! Goal: wrong credentials cost time but no record, and are replaced at run time; the same for untrusted TLS. No secret is
//! ever logged.

use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::Signal;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::harness::{API_KEY, Agent, DEAD_LETTERS, RedisServer, Sandbox, Stage, USAGE, load, until};

async fn link_is(agent: &Agent, reason: &str) {
    until(&format!("the link is down: {reason}"), async || {
        let health = agent.health().await?;
        health["components"]["control_plane"]["link"].as_str()?.ends_with(reason).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_wrong_key_gives_up_nothing_and_is_replaced_at_run_time() {
    for told in [true, false] {
        let sandbox = Sandbox::start(&["--api-key", API_KEY]);
        let redis = RedisServer::start().await;
        let mut agent = Agent::new(&redis, &sandbox.url);
        let key = agent.dir().join("key");
        std::fs::write(&key, "0ld-wr0ng-key\n").expect("a file");
        agent.unset("CONTROL_PLANE_API_KEY");
        agent.set("CONTROL_PLANE_API_KEY_FILE", "key");
        agent.start();
        agent.ready().await;
        redis.push(USAGE, &[load::usage("s", 0)]).await;
        link_is(&agent, "credentials").await;
        std::fs::write(&key, format!("{API_KEY}\n")).expect("a file");
        if told {
            agent.signal(Signal::HUP);
        }
        let mut stage = Stage { redis, sandbox, agent };
        stage.drained().await;
        assert_eq!(stage.sandbox.accounts().await.processed(), 1);
        assert_eq!(stage.redis.len(DEAD_LETTERS).await, 0);
        let log = stage.agent.log();
        assert!(log.contains("reloaded"), "{log}");
        assert!(!log.contains(API_KEY) && !log.contains("0ld-wr0ng-key"), "{log}");
    }
}

#[tokio::test]
async fn a_control_plane_that_cannot_be_trusted_gets_nothing_and_the_log_says_why() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![cert.der().clone()], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("its address").port());
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            assert!(
                acceptor.accept(stream).await.is_err(),
                "the agent trusted a certificate that nobody signed"
            );
        }
    });
    let redis = RedisServer::start().await;
    let mut agent = Agent::new(&redis, &url);
    agent.set("LOG_LEVEL", "DEBUG");
    agent.start();
    agent.ready().await;
    redis.push(USAGE, &[load::usage("s", 0)]).await;
    link_is(&agent, "tls").await;
    let health = agent.health().await.expect("it answers");
    let cause = health["components"]["control_plane"]["cause"].as_str().expect("a cause").to_owned();
    assert!(cause.contains("certificate"), "{cause}");
    agent.says(&cause).await;
    assert_eq!(redis.len(DEAD_LETTERS).await, 0);
    assert!(!agent.log().contains(API_KEY), "{}", agent.log());
    assert!(!serving.is_finished(), "the server has failed");
    serving.abort();
}
