//! The bytes of a TCP connection, counted, and paced by the bandwidth limit.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::bandwidth::{Bandwidth, Grant};

/// Shared by all connections: the limit, and totals since the start.
#[derive(Debug, Default)]
pub(in crate::control_plane) struct Meter {
    pub(super) bandwidth: Bandwidth,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    /// Sets or removes the limit on sending.
    pub(in crate::control_plane) fn set_bandwidth(&self, bytes_per_second: Option<std::num::NonZeroU64>) {
        self.bandwidth.set(bytes_per_second);
    }

    /// Bytes sent and received.
    pub(in crate::control_plane) fn totals(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

/// A TCP connection, shared by the task that serves it and the pool.
#[derive(Debug)]
pub(super) struct TcpConnection {
    stream: TcpStream,
    meter: Arc<Meter>,
    begun: Instant,
    sent: AtomicU64,
    /// Nanoseconds since the connection was created.
    progressed: AtomicU64,
    is_urgent: AtomicBool,
}

impl TcpConnection {
    pub(super) fn new(stream: TcpStream, meter: Arc<Meter>) -> Self {
        Self {
            stream,
            meter,
            begun: Instant::now(),
            sent: AtomicU64::new(0),
            progressed: AtomicU64::new(0),
            is_urgent: AtomicBool::new(false),
        }
    }

    /// Sets whether further bytes are exempt from the limit.
    pub(super) fn set_urgent(&self, is_urgent: bool) {
        self.is_urgent.store(is_urgent, Ordering::Relaxed);
    }

    /// Bytes taken by the kernel.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// When the kernel last took bytes or they last waited for the bandwidth limit, which is not a failure.
    pub(super) fn progressed_at(&self) -> Instant {
        self.begun + Duration::from_nanos(self.progressed.load(Ordering::Relaxed))
    }

    /// Whether no unread data has arrived, including the end of the stream.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit(); 1];
        let peeked = SockRef::from(&self.stream).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn progress(&self) {
        self.progressed.store(self.begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The stream used by protocols.
pub(super) struct Socket {
    tcp: Arc<TcpConnection>,
    /// Bytes that may be sent now.
    granted: usize,
    wait: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(tcp: Arc<TcpConnection>) -> Self {
        Self { tcp, granted: 0, wait: None }
    }

    /// Obtains the number of bytes that may be sent now.
    fn poll_granted(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<usize> {
        while self.granted == 0 {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(cx));
                self.wait = None;
            }
            match self.tcp.meter.bandwidth.take(wanted) {
                Grant::Bytes(bytes) => self.granted = bytes,
                Grant::Wait(time) => {
                    self.tcp.progress();
                    self.wait = Some(Box::pin(tokio::time::sleep(time)));
                }
            }
        }
        Poll::Ready(self.granted.min(wanted))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tcp.meter.bandwidth.give_back(self.granted);
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let tcp = &self.tcp;
        loop {
            ready!(tcp.stream.poll_read_ready(cx))?;
            match tcp.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(bytes) => {
                    tcp.meter.received.fetch_add(bytes as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let is_urgent = self.tcp.is_urgent.load(Ordering::Relaxed);
        let most = if is_urgent { bytes.len() } else { ready!(self.poll_granted(bytes.len(), cx)) };
        loop {
            ready!(self.tcp.stream.poll_write_ready(cx))?;
            let written = match self.tcp.stream.try_write(&bytes[..most]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                written => written?,
            };
            if is_urgent {
                self.tcp.meter.bandwidth.charge(written);
            } else {
                self.granted -= written;
            }
            self.tcp.sent.fetch_add(written as u64, Ordering::Relaxed);
            self.tcp.meter.sent.fetch_add(written as u64, Ordering::Relaxed);
            self.tcp.progress();
            return Poll::Ready(Ok(written));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Dropping it closes the socket.
        Poll::Ready(SockRef::from(&self.tcp.stream).shutdown(std::net::Shutdown::Write))
    }
}

/// Counts bytes received above TLS: those of answers, without the encryption.
pub(super) struct Heard<S> {
    stream: S,
    bytes: Arc<AtomicU64>,
}

impl<S> Heard<S> {
    pub(super) fn new(stream: S, bytes: Arc<AtomicU64>) -> Self {
        Self { stream, bytes }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.bytes.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
