//! A `ControlPlane` to develop, demonstrate and test against.
//!
//! It serves the whole API over real sockets, keeps exact accounts of what it processed (`GET /sandbox/accounts`),
//! and makes the weather (`GET`, `PUT`, `PATCH /sandbox/weather`): slow, flaky, down, the answer lost.
//!
//! | `/sandbox/…` | |
//! |---|---|
//! | `GET`, `DELETE accounts` | records received, processed, repeated, out of order; reset |
//! | `GET seen?kind=&transaction_id=` | how often one record was seen, with which key, in which session; `kind` is `usage`, `started`, `completed` or `quota` |
//! | `GET records?limit=` | the last bodies, the newest first |
//! | `GET`, `PUT`, `PATCH weather` | read, replace, change the [`Weather`] |
//! | `GET`, `PUT link` | the settings of `--link` and its traffic, in bytes each way; set it, in the syntax of the flag |
//! | `GET`, `DELETE servers` | registrations with the last heartbeats; forget them |
//! | `GET`, `POST commands` | pending commands and received results; queue one (`server_id`: for one server, `"sign": true`: signed) |
//! | `PUT`, `POST public-keys` | sets the published JWK Set; creates a new signing key and publishes it |
//! | `GET openapi.json` | the API of a `ControlPlane`, from the handlers here |
//!
//! It shares no code with the agent: a mistake in one is not repeated in the other. [`demo`] plays the agent's main job
//! against it.
//!
//! A request passes `listener` → `gate` (weather) → `api`, `batch` or `fleet` → `accounts`.

use std::{
    fmt,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use anyhow::Context as _;
use axum::http::StatusCode;
use tokio::sync::watch;
use uuid::Uuid;

mod accounts;
mod api;
mod batch;
mod body;
mod chance;
mod delivery;
pub mod demo;
mod dice;
mod encoding;
mod fleet;
#[expect(dead_code, reason = "what a ControlPlane is sent is described by these, and made by agents")]
mod forms;
mod gate;
mod headers;
mod kind;
mod link;
mod listener;
mod openapi;
mod operator;
mod order;
mod recent;
mod signer;
mod traffic;
mod transcode;
mod weather;

#[cfg(test)]
mod tests;

pub use chance::{BadValue, Probability, Status, StatusChances};
pub use encoding::Encoding;
pub use link::{BadLink, Settings as LinkSettings};
pub use weather::{BadBody, Weather};

use accounts::{Accounts, Receipt};
use dice::Dice;
use fleet::Fleet;
use link::Link;
use listener::{Listener, Phase};
use recent::Recents;
use traffic::Traffic;

/// The namespace of every idempotency key: `docs/contract/keys.md`.
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x7a1b_3741_a713_569c_ae9b_a8cf_bb86_aeab);

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// The part of `--help` about `/sandbox/…`.
const PATHS: &str = "\
Paths of the sandbox itself, beside the ControlPlane's API; docs/sandbox.md has examples:
  GET, DELETE /sandbox/accounts       Records processed, repeated, out of order; reset
  GET /sandbox/seen?kind=&transaction_id=
                                      How often one record was seen, and with which key
  GET /sandbox/records?limit=         The last bodies, the newest first
  GET, PUT, PATCH /sandbox/weather    Fault injection: read, replace, change
  GET, PUT /sandbox/link              The slow link of --link: read, set
  GET, DELETE /sandbox/servers        Registrations and heartbeats; forget them
  GET, POST /sandbox/commands         Commands and results; queue one (\"sign\": true signs it)
  PUT, POST /sandbox/public-keys      Public keys to serve; sign with a new one
  GET /sandbox/openapi.json           The ControlPlane's API as OpenAPI";

/// The sandbox's settings.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = PATHS)]
pub struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_LISTEN, value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where to serve /sandbox/… as well, also while the `ControlPlane` is down
    #[arg(long, value_name = "ADDRESS")]
    pub control_listen: Option<SocketAddr>,
    /// The X-API-Key to require; without it, any credentials are accepted
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<ApiKey>,
    /// Answer 404 to batches
    #[arg(long)]
    pub no_batch: bool,
    /// Status for a record that was processed before
    #[arg(long, value_enum, default_value_t)]
    pub duplicates: Duplicates,
    /// Put a slow link in front of the port, like rtt=100ms,rate=10mbit: rtt is the round trip, rate applies each way, queue
    /// (default 256k) limits the bytes queued each way for all connections, window (default 4m) the bytes in flight of one
    /// connection
    #[arg(long, value_name = "LINK")]
    pub link: Option<LinkSettings>,
    /// Makes the injected faults reproducible
    #[arg(long)]
    pub seed: Option<u64>,
    /// What goes wrong from the start.
    #[command(flatten)]
    pub weather: Weather,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN,
            control_listen: None,
            api_key: None,
            no_batch: false,
            link: None,
            duplicates: Duplicates::default(),
            seed: None,
            weather: Weather::default(),
        }
    }
}

/// An API key, which is never logged.
#[derive(Clone)]
pub struct ApiKey(String);

impl FromStr for ApiKey {
    type Err = std::convert::Infallible;

    fn from_str(key: &str) -> Result<Self, Self::Err> {
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// The answer to a record that was processed before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Duplicates {
    /// 409: reported as a duplicate.
    #[default]
    #[value(name = "409")]
    Conflict,
    /// 200: answered as if it were new.
    #[value(name = "200")]
    Ok,
}

/// State shared by all requests.
struct Shared {
    api_key: Option<String>,
    batch: bool,
    duplicates: Duplicates,
    weather: RwLock<Arc<Weather>>,
    dice: Mutex<Dice>,
    accounts: Mutex<Accounts>,
    recents: Mutex<Recents>,
    traffic: Mutex<Traffic>,
    fleet: Mutex<Fleet>,
    /// The link in front of the `ControlPlane`'s port.
    link: Option<Arc<Link>>,
    /// The target state of the `ControlPlane`'s port.
    phase: watch::Sender<Phase>,
    /// Its actual state.
    listening: watch::Sender<bool>,
}

/// Ignores poisoning: counters are never left half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(args: Args) -> Self {
        let Args { api_key, no_batch, duplicates, link, seed, weather, .. } = args;
        let phase = if weather.down { Phase::Down } else { Phase::Open };
        Self {
            api_key: api_key.map(|key| key.0),
            batch: !no_batch,
            duplicates,
            link: link.map(|settings| Arc::new(Link::new(settings))),
            weather: RwLock::new(Arc::new(weather)),
            dice: Mutex::new(Dice::new(seed.unwrap_or_else(rand::random))),
            accounts: Mutex::default(),
            recents: Mutex::default(),
            traffic: Mutex::default(),
            fleet: Mutex::default(),
            phase: watch::Sender::new(phase),
            listening: watch::Sender::new(true),
        }
    }

    fn weather(&self) -> Arc<Weather> {
        Arc::clone(&self.weather.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies `change` to the weather, and sets the port's target state accordingly.
    fn change_weather<E>(
        &self,
        change: impl FnOnce(&Weather) -> Result<Weather, E>,
    ) -> Result<Arc<Weather>, E> {
        let mut weather = self.weather.write().unwrap_or_else(PoisonError::into_inner);
        let new = Arc::new(change(&weather)?);
        *weather = Arc::clone(&new);
        let next = if new.down { Phase::Down } else { Phase::Open };
        self.phase.send_if_modified(|phase| {
            let changes = *phase != Phase::Closing && *phase != next;
            if changes {
                *phase = next;
            }
            changes
        });
        Ok(new)
    }

    fn dice(&self) -> MutexGuard<'_, Dice> {
        lock(&self.dice)
    }

    fn accounts(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.accounts)
    }

    fn recents(&self) -> MutexGuard<'_, Recents> {
        lock(&self.recents)
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        lock(&self.traffic)
    }

    fn fleet(&self) -> MutexGuard<'_, Fleet> {
        lock(&self.fleet)
    }

    fn status(&self, receipt: Receipt) -> StatusCode {
        match (receipt, self.duplicates) {
            (Receipt::Duplicate, Duplicates::Conflict) => StatusCode::CONFLICT,
            (Receipt::Duplicate, Duplicates::Ok) | (Receipt::Processed, _) => StatusCode::OK,
        }
    }
}

/// A sandbox that has bound its ports but does not serve yet.
pub struct Sandbox {
    main: Listener,
    control: Option<Listener>,
    shared: Arc<Shared>,
}

impl Sandbox {
    /// Binds the ports.
    pub fn bind(args: Args) -> anyhow::Result<Self> {
        let bind = |address, link| {
            Listener::bind(address, link).with_context(|| format!("cannot listen on {address}"))
        };
        anyhow::ensure!(!args.weather.down || args.control_listen.is_some(), "--down needs --control-listen");
        if let Some(problem) = args.weather.problem() {
            anyhow::bail!("--{problem}");
        }
        let (listen, control_listen) = (args.listen, args.control_listen);
        let shared = Arc::new(Shared::new(args));
        let main = bind(listen, shared.link.clone())?;
        let control = control_listen.map(|address| bind(address, None)).transpose()?;
        Ok(Self { main, control, shared })
    }

    /// The `ControlPlane`'s address, with the bound port.
    pub fn addr(&self) -> SocketAddr {
        self.main.address()
    }

    /// The address of `/sandbox/…` that stays while the `ControlPlane` is down.
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control.as_ref().map(Listener::address)
    }

    /// Serves until `shutdown` completes; requests in flight get a second to finish.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { main, control, shared } = self;
        let connected = || shared.traffic().connected();
        let main = main.serve(
            api::router(&shared).merge(operator::router(&shared, false)),
            shared.phase.subscribe(),
            shared.listening.clone(),
            connected,
        );
        let control_phase = watch::Sender::new(Phase::Open);
        let control = async {
            if let Some(control) = control {
                let app = operator::router(&shared, true);
                control.serve(app, control_phase.subscribe(), watch::Sender::new(true), || {}).await;
            }
        };
        let stop = async {
            shutdown.await;
            shared.phase.send_replace(Phase::Closing);
            control_phase.send_replace(Phase::Closing);
        };
        tokio::join!(main, control, stop);
    }
}

/// Runs a sandbox until `shutdown` completes. Prints its addresses to standard output once it is ready.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let sandbox = Sandbox::bind(args)?;
    let mut ready = format!("listening on http://{}\n", sandbox.addr());
    if let Some(control) = sandbox.control_addr() {
        ready = format!("{ready}control on http://{control}\n");
    }
    let mut stdout = std::io::stdout();
    stdout
        .write_all(ready.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot say where it listens")?;
    sandbox.serve(shutdown).await;
    Ok(())
}
