//! Notifies systemd of this process' state: datagrams, as sd_notify(3) describes them.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

/// Sending takes microseconds; only a hung systemd reaches this limit.
const SENT_WITHIN: Duration = Duration::from_secs(5);

/// Notifies systemd. Without a listening systemd, notifications are dropped. Clones share the socket.
#[derive(Clone, Debug, Default)]
pub struct Notify {
    socket: Option<Arc<tokio::net::UnixDatagram>>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Connects to the systemd that started this process, if it set the environment variables.
    pub fn of_process() -> Self {
        let (ours, wanted) = (std::process::id().to_string(), std::env::var("WATCHDOG_PID").ok());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().filter(|_| wanted.is_none_or(|pid| pid == ours));
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(address) => Self::to(&address, watchdog.as_deref()).unwrap_or_else(|error| {
                // A stale variable must not stop the agent.
                tracing::warn!(%error, "NOTIFY_SOCKET: cannot notify systemd");
                Self::default()
            }),
            None => Self::default(),
        }
    }

    /// Connects to a socket: a path, or an abstract socket whose name begins with `@`. `watchdog` is the interval, in
    /// microseconds, within which systemd expects a ping.
    fn to(address: &OsStr, watchdog: Option<&str>) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // The runtime has a single thread: it must not block on a systemd that does not read.
        socket.set_nonblocking(true)?;
        let socket = Some(Arc::new(tokio::net::UnixDatagram::from_std(socket)?));
        let micros = watchdog.and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        Ok(Self { socket, watchdog: micros.map(Duration::from_micros) })
    }

    /// Whether a socket is connected.
    pub(crate) fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// The interval within which systemd expects a ping, if any.
    pub(crate) fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Announces that a new configuration is being read; [`Self::ready`] follows.
    pub async fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}")).await;
    }

    /// Announces that the agent works with the configuration it has read.
    pub async fn ready(&self) {
        self.send("READY=1").await;
    }

    /// Sends `state`: lines of `NAME=value`.
    pub(crate) async fn send(&self, state: &str) {
        let Some(socket) = &self.socket else { return };
        match tokio::time::timeout(SENT_WITHIN, socket.send(state.as_bytes())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, state, "cannot notify systemd"),
            Err(_) => tracing::debug!(state, "systemd does not read notifications"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_abstract_socket_is_reached_too() {
        let name = format!("dataplane-agent-test-{}", uuid::Uuid::new_v4());
        let listener = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let notify = Notify::to(OsStr::new(&format!("@{name}")), Some("2000000")).unwrap();
        notify.reloading().await;
        let mut buffer = [0; 256];
        let length = listener.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        let micros = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(text);
        assert!(micros.parse::<u64>().unwrap() > 0);
        assert_eq!(notify.watchdog(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(Notify::to(OsStr::new("/nowhere/notify"), None).is_err());
    }
}
