//! The sandbox over real sockets: what a client sees, and what the accounts say afterwards.

mod accounts;
mod api;
mod batch;
mod encoding;
mod fleet;
mod link;
mod openapi;
mod weather;

use std::{net::SocketAddr, time::Duration};

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::KEY_NAMESPACE;
use super::*;

/// Long enough for a slow machine; only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(20);
const FREE_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A running sandbox and a client of it.
struct Peer {
    address: SocketAddr,
    control: SocketAddr,
    client: Client,
    /// Stops the sandbox when dropped.
    _stop: oneshot::Sender<()>,
}

fn peer_with(args: Args) -> Peer {
    let args = Args { listen: FREE_PORT, control_listen: Some(FREE_PORT), ..args };
    let sandbox = Sandbox::bind(args).unwrap();
    let (address, control) = (sandbox.addr(), sandbox.control_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(sandbox.serve(async {
        let _ = stopped.await;
    }));
    let no_redirects = reqwest::redirect::Policy::none();
    let client = Client::builder().no_proxy().timeout(PATIENCE).redirect(no_redirects).build().unwrap();
    Peer { address, control, client, _stop: stop }
}

fn peer() -> Peer {
    peer_with(Args { seed: Some(1), ..Args::default() })
}

impl Peer {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}/api/v1/{path}", self.address))
    }

    fn operator(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}/sandbox/{path}", self.control))
    }

    /// A record's request as the agent sends it.
    fn delivery(&self, session: &str, what: &str, key: &str, body: &Value) -> RequestBuilder {
        self.request(Method::POST, &format!("sessions/{session}/{what}"))
            .header("x-api-key", "key")
            .header("x-correlation-id", "corr")
            .header("idempotency-key", key)
            .json(body)
    }

    fn usage(&self, session: &str, transaction: &str) -> RequestBuilder {
        let body = json!({"transaction_id": transaction, "api_session_id": session});
        let key = key("usage_record", transaction).to_string();
        self.delivery(session, "usage-records", &key, &body)
    }

    /// A batch as the agent sends it, from sessions with their records' kinds and bodies.
    fn batch(&self, sessions: &[(&str, Vec<(&str, Value)>)]) -> RequestBuilder {
        let keys: Vec<u8> = sessions
            .iter()
            .flat_map(|(_, records)| records)
            .flat_map(|(kind, body)| {
                key(kind, body["transaction_id"].as_str().unwrap_or_default()).into_bytes()
            })
            .collect();
        let sessions = sessions.iter().map(|(session, records)| {
            let records =
                records.iter().map(|(kind, body)| json!({"kind": kind, "body": body})).collect::<Vec<_>>();
            json!({"api_session_id": session, "records": records})
        });
        self.request(Method::POST, "records/batch")
            .header("x-api-key", "key")
            .header("x-correlation-id", "corr")
            .header("idempotency-key", Uuid::new_v5(&KEY_NAMESPACE, &keys).to_string())
            .json(&json!({"sessions": sessions.collect::<Vec<_>>()}))
    }

    /// The exceptions of a batch: positions and statuses.
    async fn exceptions(&self, sessions: &[(&str, Vec<(&str, Value)>)]) -> Vec<(u64, u64)> {
        let (status, body) = answer(self.batch(sessions)).await;
        assert_eq!(status, 200, "{body}");
        let count: usize = sessions.iter().map(|(_, records)| records.len()).sum();
        assert_eq!(body["data"]["count"], count);
        let number = |exception: &Value, name: &str| exception[name].as_u64().unwrap();
        let exceptions = body["data"]["exceptions"].as_array().unwrap().iter();
        exceptions.map(|exception| (number(exception, "index"), number(exception, "status"))).collect()
    }

    async fn get(&self, path: &str) -> Value {
        answer(self.operator(Method::GET, path)).await.1
    }

    async fn accounts(&self) -> Value {
        self.get("accounts").await
    }

    /// Totals of one kind: received, processed, duplicates, turned away.
    async fn totals(&self, kind: &str) -> [u64; 4] {
        let totals = &self.accounts().await["kinds"][kind];
        let sums = ["received", "processed", "duplicates", "turned_away"];
        let sums = sums.map(|name| totals[name].as_u64().unwrap());
        assert_eq!(sums[0], sums[1] + sums[2] + sums[3], "what was received adds up");
        sums
    }

    async fn forecast(&self, weather: Value) {
        let (status, body) = answer(self.operator(Method::PATCH, "weather").json(&weather)).await;
        assert_eq!(status, 200, "{body}");
    }

    /// Polls the accounts until they are as wanted.
    async fn until(&self, wanted: impl Fn(&Value) -> bool) {
        let asking = async {
            while !wanted(&self.accounts().await) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asking).await.expect("the accounts never became as wanted");
    }
}

/// The idempotency key of a record.
fn key(kind: &str, transaction: &str) -> Uuid {
    Uuid::new_v5(&KEY_NAMESPACE, format!("{kind}:{transaction}").as_bytes())
}

/// A usage record for a batch.
fn usage(transaction: &str) -> (&'static str, Value) {
    ("usage_record", json!({"transaction_id": transaction}))
}

/// The answer's status, and its body if that is JSON.
async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default())
}

async fn status(request: RequestBuilder) -> u16 {
    answer(request).await.0.as_u16()
}
