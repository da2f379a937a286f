//! A headless Chromium, driven through ChromeDriver by the requests of W3C WebDriver: there are few that a test needs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::harness::{free_port, until};

/// How the browser names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// As root there is no sandbox of its own, and no test wants what a browser does for people by itself.
const FLAGS: [&str; 10] = [
    "--headless",
    "--hide-scrollbars",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A window's size and taste.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) dark: bool,
}

impl Window {
    pub(crate) const ALL: [Self; 4] = [
        Self { width: 1280, height: 900, dark: false },
        Self { width: 1280, height: 900, dark: true },
        Self { width: 390, height: 844, dark: false },
        Self { width: 390, height: 844, dark: true },
    ];
}

pub(crate) struct Browser {
    driver: Child,
    http: reqwest::Client,
    url: String,
    session: String,
    process: Option<Pid>,
    profile: TempDir,
}

impl Browser {
    /// A browser that has seen nothing yet, and keeps an account of every request that it makes.
    pub(crate) async fn start() -> Self {
        let (port, profile) = (free_port(), tempfile::tempdir().expect("a temporary folder"));
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver can be started (`make test-browser` installs it)");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120));
        let http = http.build().expect("an HTTP client");
        let url = format!("http://127.0.0.1:{port}");
        let mut browser = Self { driver, http, url, session: String::new(), process: None, profile };
        until("ChromeDriver is ready", async || {
            let answer = browser.http.get(format!("{}/status", browser.url)).send().await.ok()?;
            (answer.json::<Value>().await.ok()?["value"]["ready"] == true).then_some(())
        })
        .await;
        let data = format!("--user-data-dir={}", browser.profile.path().display());
        let flags: Vec<&str> = FLAGS.into_iter().chain([data.as_str()]).collect();
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": flags},
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }}});
        let session = browser.post("/session", wanted).await;
        let process = session["capabilities"]["goog:processID"].as_i64().expect("the browser's process");
        browser.process = Pid::from_raw(process as i32);
        browser.session = format!("/session/{}", session["sessionId"].as_str().expect("a session"));
        browser
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}{path}", self.url)).json(&body).send().await;
        let answer = answer.expect("ChromeDriver answers");
        let good = answer.status().is_success();
        let mut answer: Value = answer.json().await.expect("it answers JSON");
        assert!(good, "{path} {body}: {answer}");
        answer["value"].take()
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        self.post(&format!("{}/{path}", self.session), body).await
    }

    async fn devtools(&self, command: &str, params: Value) -> Value {
        self.command("goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// From now on the window is so.
    pub(crate) async fn resize(&self, window: Window) {
        let Window { width, height, dark } = window;
        let mobile = width < 600;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    pub(crate) async fn open(&self, url: &str) {
        self.command("url", json!({"url": url})).await;
    }

    /// What a script in the page gives.
    pub(crate) async fn eval(&self, script: &str) -> Value {
        self.command("execute/sync", json!({"script": format!("return (\n{script}\n)"), "args": []})).await
    }

    /// Waits until a script in the page gives something that is true.
    pub(crate) async fn until(&self, script: &str) -> Value {
        until(script, async || {
            let value = self.eval(script).await;
            (value != json!(false) && !value.is_null()).then_some(value)
        })
        .await
    }

    /// The text of an element, which is there.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let script = format!("document.querySelector({}).textContent", json!(selector));
        self.eval(&script).await.as_str().expect("text").to_owned()
    }

    async fn element(&self, selector: &str) -> String {
        let found = self.command("element", json!({"using": "css selector", "value": selector})).await;
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// Clicks as a person does: on what can be seen.
    pub(crate) async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.command(&format!("element/{element}/click"), json!({})).await;
    }

    pub(crate) async fn fill(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.command(&format!("element/{element}/value"), json!({"text": text})).await;
    }

    /// Presses keys, one after the other, wherever the focus is. Special ones are those of WebDriver.
    pub(crate) async fn keys(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()})))
            .collect();
        self.command("actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}))
            .await;
    }

    /// A picture of the whole page.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let wanted = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.devtools("Page.captureScreenshot", wanted).await;
        let data = picture["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(data).expect("base64")
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.command("se/log", json!({"type": kind})).await;
        log.as_array().expect("a log").clone()
    }

    /// What the console has said since it was asked last.
    pub(crate) async fn console(&self) -> Vec<String> {
        let log = self.log("browser").await;
        log.iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Every URL that was asked for since this was asked last.
    pub(crate) async fn requests(&self) -> Vec<String> {
        let mut urls = Vec::new();
        for entry in self.log("performance").await {
            let message: Value =
                serde_json::from_str(entry["message"].as_str().expect("text")).expect("a message in JSON");
            let message = &message["message"];
            if message["method"] == "Network.requestWillBeSent" {
                urls.push(message["params"]["request"]["url"].as_str().expect("a URL").to_owned());
            }
            if message["method"] == "Network.webSocketCreated" {
                urls.push(message["params"]["url"].as_str().expect("a URL").to_owned());
            }
        }
        urls
    }

    /// Ends the browser; its driver ends with this value.
    pub(crate) async fn quit(mut self) {
        let answer = self.http.delete(format!("{}{}", self.url, self.session)).send().await;
        assert!(answer.expect("ChromeDriver answers").status().is_success());
        self.process = None;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Those that have ended already are no fault here. A browser outlives a driver that is killed.
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::TERM);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
