//! The part of HTTP/1.1 that the agent's and the sandbox's pages need, on loopback.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Far longer than any answer takes.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Requests sent before the first answer is read.
const PIPELINED: usize = 200;

/// GETs a path and returns the body, whatever the status.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    request(address, "GET", path, &[], "").map(|(_, body)| body)
}

/// The same, as JSON.
pub(crate) fn get_json(address: &str, path: &str) -> Result<Value> {
    let body = get(address, path)?;
    serde_json::from_str(&body).with_context(|| format!("{path} answers no JSON: {body}"))
}

/// Sends one request over its own connection; returns status and body.
pub(crate) fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<(u16, String)> {
    let mut stream = connect(address)?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text = format!("{text}{name}: {value}\r\n");
    }
    let text = format!("{text}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes())?;
    answer(&mut BufReader::new(stream)).with_context(|| format!("{method} {path} of {address}"))
}

/// GETs many paths over one connection and returns the answers in order. `headers` are complete lines.
pub(crate) fn get_many(
    address: &str,
    headers: &str,
    paths: &[String],
    mut each: impl FnMut(usize, &str) -> Result<()>,
) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let mut writer = connect(address)?;
    let mut reader = BufReader::new(writer.try_clone()?);
    for (chunk, paths) in paths.chunks(PIPELINED).enumerate() {
        let requests =
            paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n"));
        writer.write_all(requests.collect::<String>().as_bytes())?;
        for (n, path) in paths.iter().enumerate() {
            let (status, body) = answer(&mut reader).with_context(|| path.clone())?;
            ensure!(status == 200, "{path}: {status}: {body}");
            each(chunk * PIPELINED + n, &body)?;
        }
    }
    Ok(())
}

fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn answer(reader: &mut BufReader<TcpStream>) -> Result<(u16, String)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status: {line:?}"))?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the answer is cut");
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse()?,
            "transfer-encoding" => bail!("an answer in chunks"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8(body)?))
}
