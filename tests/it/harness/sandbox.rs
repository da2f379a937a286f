//! The sandbox as a separate process.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

pub(crate) struct Sandbox {
    pub(crate) url: String,
    control: String,
    process: Child,
    http: reqwest::Client,
}

impl Sandbox {
    /// Starts it with these flags, and waits until it listens.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dataplane-agent"));
        command.args(["sandbox", "--listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"]).args(flags);
        Self::start_by(command, |_, _| {})
    }

    /// Starts it through this command, which becomes the sandbox; `prepare` may read its output and write to it first.
    pub(crate) fn start_by(
        mut command: Command,
        prepare: impl FnOnce(&mut Child, &mut Lines<BufReader<ChildStdout>>),
    ) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the sandbox can be started");
        let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        prepare(&mut process, &mut lines);
        let mut address = |prefix: &str| {
            let line = lines.next().expect("a line").expect("its output can be read");
            line.strip_prefix(prefix).unwrap_or_else(|| panic!("the sandbox says {line:?}")).to_owned()
        };
        let (url, control) = (address("listening on "), address("control on "));
        Self { url, control, process, http: client() }
    }

    /// Replaces the weather.
    pub(crate) async fn weather(&self, weather: Value) {
        let answer = self.http.put(format!("{}/sandbox/weather", self.control)).json(&weather).send().await;
        let answer = answer.expect("the sandbox answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(format!("{}/sandbox/{path}", self.control)).send().await;
        answer.expect("the sandbox answers").json().await.expect("it answers JSON")
    }

    /// The settings of its link, and its traffic.
    pub(crate) async fn link(&self) -> Value {
        self.get("link").await
    }

    pub(crate) async fn accounts(&self) -> Accounts {
        Accounts(self.get("accounts").await)
    }

    /// The latest bodies, newest first.
    pub(crate) async fn records(&self) -> Vec<Value> {
        let records = self.get("records?limit=100").await;
        records["records"].as_array().expect("a list of records").clone()
    }

    pub(crate) async fn servers(&self) -> Value {
        self.get("servers").await["servers"].take()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.http.post(format!("{}/sandbox/{path}", self.control)).json(body).send().await;
        let answer = answer.expect("the sandbox answers");
        assert!(answer.status().is_success(), "{path} {body}: {}", answer.status());
        answer.json().await.expect("it answers JSON")
    }

    /// Queues a command. Returns it as it is delivered.
    pub(crate) async fn command(&self, command: Value) -> Value {
        self.post("commands", &command).await
    }

    /// The results received for a command, oldest first.
    pub(crate) async fn results(&self, command_id: &str) -> Vec<Value> {
        let results = self.get("commands").await["results"].take();
        let results = results.as_array().expect("a list of results").iter();
        results.filter(|result| result["command_id"] == command_id).cloned().collect()
    }

    /// Publishes these keys.
    pub(crate) async fn put_keys(&self, keys: &Value) {
        let answer = self.http.put(format!("{}/sandbox/public-keys", self.control)).json(keys).send().await;
        assert!(answer.expect("the sandbox answers").status().is_success());
    }

    /// Signs with a new key from now on, and publishes only that one.
    pub(crate) async fn rotate_keys(&self) {
        self.post("public-keys", &Value::Null).await;
    }

    /// Forgets every server, like a ControlPlane that lost its data.
    pub(crate) async fn forget_servers(&self) {
        let answer = self.http.delete(format!("{}/sandbox/servers", self.control)).send().await;
        assert!(answer.expect("the sandbox answers").status().is_success());
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the sandbox has processed.
#[derive(Debug)]
pub(crate) struct Accounts(pub(crate) Value);

impl Accounts {
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {}", self.0))
    }

    /// A sum over all kinds.
    pub(crate) fn sum(&self, field: &str) -> u64 {
        let kinds = ["usage", "started", "completed", "quota"];
        kinds.iter().map(|kind| self.number(&format!("/kinds/{kind}/{field}"))).sum()
    }

    /// Records that were processed, each once.
    pub(crate) fn processed(&self) -> u64 {
        self.sum("processed")
    }

    pub(crate) fn kind(&self, kind: &str, field: &str) -> u64 {
        self.number(&format!("/kinds/{kind}/{field}"))
    }

    /// The number of requests to this endpoint with this outcome.
    pub(crate) fn requests(&self, endpoint: &str, outcome: &str) -> u64 {
        self.0["requests"][endpoint][outcome].as_u64().unwrap_or(0)
    }

    /// All requests of this endpoint.
    pub(crate) fn all_requests(&self, endpoint: &str) -> u64 {
        let ended = self.0["requests"][endpoint].as_object();
        ended.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// Asserts that nothing was out of order, and that every repetition had the same key and body.
    #[track_caller]
    pub(crate) fn assert_in_order_and_recognisable(&self) {
        assert_eq!(self.number("/order_violations/count"), 0, "{}", self.0["order_violations"]);
        assert_eq!(self.sum("duplicates_different"), 0, "{}", self.0);
        self.assert_same_keys();
        let missing = &self.0["missing"];
        assert_eq!(missing["idempotency_key"], 0, "{missing}");
        assert_eq!(missing["correlation_id"], 0, "{missing}");
        assert_eq!(missing["credentials"], 0, "{missing}");
    }

    /// Asserts that every repetition had the same key. If two agents sent a record their bodies differ, because each names
    /// itself in it.
    #[track_caller]
    pub(crate) fn assert_same_keys(&self) {
        assert_eq!(self.number("/key_violations/count"), 0, "{}", self.0);
    }
}

/// An HTTP client without a proxy and with short timeouts.
pub(super) fn client() -> reqwest::Client {
    let client = reqwest::Client::builder().no_proxy().timeout(std::time::Duration::from_secs(10));
    client.build().expect("an HTTP client")
}
