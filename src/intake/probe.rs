//! Checks Redis before the agent uses it, or beside a running agent. Creates and deletes a scratch key named like the
//! queues, to test the same permissions. The queues themselves are only read, or written without changing them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisError, cmd};
use uuid::Uuid;

use super::allowance::ANSWER_BYTES;
use super::connection::{Connection, connect};
use super::fault::{is_broken_off, reason_of, refuses, said};
use super::names::{LeaseKeys, beside};
use super::script::Script;
use super::source::{check_version, evicts, versions};
use super::stream::GROUP;
use super::wakeup::can_be_silent;
use super::{Settings, SourceError, SourceMode};
use crate::record::Queue;
use crate::telemetry::finding::Finding;

const REACH: &str = "redis";
const RIGHTS: &str = "redis_rights";
const QUEUES: &str = "redis_queues";
/// A leftover scratch key expires after this many milliseconds.
const SCRATCH_MILLIS: u64 = 60_000;

/// Checks the server, the permissions, and the queues. `own` is the ID of this agent's outbox.
pub async fn probe(settings: &Settings, own: Option<Uuid>) -> Vec<Finding> {
    let begun = Instant::now();
    let address = settings.server.address();
    let mut connection = match connect(settings, Duration::ZERO).await {
        Ok(connection) => connection,
        Err(error) => return vec![unreached(&address, &error)],
    };
    let found = match versions(&mut connection).await {
        Ok(versions) => versions,
        Err(SourceError::Redis(error)) => return vec![unreached(&address, &error)],
        Err(error) => {
            return vec![Finding::failed(
                REACH,
                format!("{address}: {error}"),
                "another service may be listening on this port",
            )];
        }
    };
    if let Some(error) = found.iter().find_map(|version| check_version(version).err()) {
        return vec![Finding::failed(REACH, format!("{address}: {error}"), "upgrade Redis to 6.2 or newer")];
    }
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let mut all = vec![Finding::ok(REACH, format!("{address}: {} answered in {took:.1} ms", told(&found)))];
    if let Some(policy) = evicts(&mut connection).await {
        all.push(Finding::warning(
            "redis_memory",
            format!("this Redis evicts whole queues when its memory is full (maxmemory-policy {policy})"),
            "set maxmemory-policy noeviction",
        ));
    }
    all.push(rights(&mut connection, settings).await);
    all.extend(waiting(&mut connection, settings).await);
    all.extend(answers(settings).await);
    all.push(queues(&mut connection, settings).await);
    all.extend(holder(&mut connection, settings, own).await);
    all
}

/// Describes the versions; a cluster's nodes usually share one.
fn told(versions: &[String]) -> String {
    let different: BTreeSet<&str> = versions.iter().map(String::as_str).collect();
    let different = different.into_iter().collect::<Vec<_>>().join(", ");
    match versions.len() {
        0 => "a Redis that reports no version by INFO or HELLO".to_owned(),
        1 => format!("version {different}"),
        nodes => format!("{nodes} nodes of version {different}"),
    }
}

fn unreached(address: &str, error: &RedisError) -> Finding {
    let text = said(error);
    let advice = match reason_of(error) {
        "unreachable" if text.contains("invalid peer certificate: UnknownIssuer") => {
            "set REDIS_CA_FILE to the PEM file of the certificate authority of Redis"
        }
        "unreachable" if text.contains("invalid peer certificate: NotValidForName") => {
            "use the host name of Redis' certificate in REDIS_URL"
        }
        "unreachable" if text.contains("invalid peer certificate: Expired") => {
            "have Redis' certificate renewed, or set this machine's clock"
        }
        "unreachable" if text.contains("invalid peer certificate") => {
            "see Redis' certificate, and REDIS_CA_FILE"
        }
        "unreachable" if text.contains("received fatal alert") => {
            "set REDIS_CLIENT_CERT_FILE and REDIS_CLIENT_KEY_FILE to a client certificate Redis accepts"
        }
        "authentication" => "correct REDIS_PASSWORD, or the user and password in REDIS_URL",
        "timeout" => "check REDIS_HOST, firewalls on the way, and whether Redis hangs",
        "unreachable" => {
            "start Redis, or correct REDIS_HOST and REDIS_PORT, or REDIS_URL (rediss:// with TLS)"
        }
        "loading" => "wait until Redis has loaded its data set",
        "no_permission" => "grant the user of REDIS_URL this permission (ACL SETUSER)",
        _ => "see the error from Redis; the agent retries until it is gone",
    };
    Finding::failed(REACH, format!("{address}: {text}"), advice)
}

/// Whether blocking reads of streams work.
async fn waiting(connection: &mut Connection, settings: &Settings) -> Option<Finding> {
    let key = settings.names.queue(Queue::Usage);
    if settings.mode == SourceMode::List || can_be_silent(connection, key).await.ok()? {
        return None;
    }
    Some(Finding::warning(
        "redis_waiting",
        "CLIENT REPLY is not allowed or not available: streams are polled ten times a second",
        "grant the user of REDIS_URL this permission: ACL SETUSER … +client|reply",
    ))
}

/// Checks the maximum size of an answer: Redis silently closes a connection whose answer exceeds its limit.
async fn answers(settings: &Settings) -> Option<Finding> {
    let script = Script::new(&["return string.rep('x', ARGV[1])"]);
    let mut bytes = ANSWER_BYTES;
    loop {
        let mut connection = connect(settings, Duration::ZERO).await.ok()?;
        let mut call = script.call();
        call.key(settings.names.queue(Queue::Usage)).arg(bytes);
        match call.invoke::<Vec<u8>>(&mut connection).await {
            Ok(_) => break,
            Err(error) if is_broken_off(&error) && bytes > 1 => bytes /= 2,
            // Any other error is reported by `rights`.
            Err(_) => return None,
        }
    }
    (bytes < ANSWER_BYTES).then(|| {
        Finding::warning(
            "redis_answers",
            format!(
                "Redis closes the connection instead of giving an answer of {} bytes, and gives one of {bytes}: records are \
                 taken in smaller rounds, and one that is longer than that is not taken at all",
                bytes * 2
            ),
            format!("raise client-output-buffer-limit normal in Redis to {ANSWER_BYTES} bytes, or to 0"),
        )
    })
}

/// Runs every command of the agent on a scratch key, and a write without effect on each of the agent's own keys.
async fn rights(connection: &mut Connection, settings: &Settings) -> Finding {
    let names = &settings.names;
    let is_cluster = settings.server.is_cluster();
    // In a cluster all of them must be in one slot, like the lease beside the queue.
    let usage = if is_cluster { beside(&names.usage) } else { names.usage.clone() };
    let scratch = format!("{usage}:check:{}:{}", names.server_id, Uuid::new_v4().simple());
    let mut missing: Vec<String> = Vec::new();
    let mut refused = None;
    let mut note = |what: &str, error: &RedisError, missing: &mut Vec<String>| match reason_of(error) {
        "no_permission" => missing.push(what.to_owned()),
        _ if refuses(error, what) => missing.push(what.to_owned()),
        _ if refused.is_none() => refused = Some(format!("{what}: {error}")),
        _ => {}
    };
    let script = Script::new(&["return 1"]);
    if let Err(error) = script.call().key(&scratch).invoke::<i64>(connection).await {
        note("EVAL", &error, &mut missing);
    }
    for command in attempts(&scratch, settings.mode) {
        if let Err(error) = command.query_async::<redis::Value>(connection).await {
            note(&argument(&command, 0), &error, &mut missing);
        }
    }
    for change in changes_of_nothing(settings) {
        // Whether the command is allowed is checked above; this checks the key.
        if let Err(error) = change.query_async::<redis::Value>(connection).await
            && reason_of(&error) == "no_permission"
            && error.to_string().contains("key")
        {
            missing.push(format!("writing to {}", argument(&change, 1)));
        }
    }
    if let Some(refused) = refused {
        return Finding::failed(
            RIGHTS,
            format!("Redis refuses commands: {refused}"),
            "possible causes: out of memory, a read-only replica, a full disk; see Redis' log",
        );
    }
    if missing.is_empty() {
        let scripts = if script.is_sent_whole() {
            "; scripts are sent with EVAL, since EVALSHA is not allowed"
        } else {
            ""
        };
        return Finding::ok(RIGHTS, format!("all commands the agent needs are allowed{scripts}"));
    }
    missing.dedup();
    Finding::failed(
        RIGHTS,
        format!("not allowed or renamed: {}", missing.join(", ")),
        format!(
            "grant the user of REDIS_URL these permissions: ACL SETUSER … ~queue:* +@connection +@list +@stream +@string +@sortedset +@scripting +@keyspace -@dangerous +time (the queues here: ~{}*)",
            names.usage.split_once(':').map_or(&*names.usage, |(prefix, _)| prefix)
        ),
    )
}

fn argument(command: &Cmd, n: usize) -> String {
    match command.args_iter().nth(n) {
        Some(redis::Arg::Simple(name)) => String::from_utf8_lossy(name).into_owned(),
        _ => String::new(),
    }
}

/// Each command of the intake and its scripts, in an order in which none fails.
fn attempts(scratch: &str, mode: SourceMode) -> Vec<Cmd> {
    let key = |suffix: &str| format!("{scratch}:{suffix}");
    let (text, set, list, other) = (key("s"), key("z"), key("l"), key("m"));
    let mut all: Vec<Cmd> = Vec::new();
    let mut ask = |name: &str, args: &[&str]| {
        let mut command = cmd(name);
        command.arg(args);
        all.push(command);
    };
    ask("TIME", &[]);
    ask("SET", &[&text, "0", "PX", &SCRATCH_MILLIS.to_string()]);
    ask("GET", &[&text]);
    ask("EXISTS", &[&text]);
    ask("INCRBY", &[&text, "1"]);
    ask("PEXPIRE", &[&text, &SCRATCH_MILLIS.to_string()]);
    // A key that cannot be deleted afterwards expires.
    let millis = SCRATCH_MILLIS.to_string();
    ask("ZADD", &[&set, "0", "a"]);
    ask("PEXPIRE", &[&set, &millis]);
    ask("ZSCORE", &[&set, "a"]);
    ask("ZRANGEBYSCORE", &[&set, "-inf", "0"]);
    ask("LPUSH", &[&list, "1"]);
    ask("PEXPIRE", &[&list, &millis]);
    ask("LTRIM", &[&list, "0", "0"]);
    if mode == SourceMode::List {
        ask("RPUSH", &[&list, "2"]);
        ask("LLEN", &[&list]);
        ask("LRANGE", &[&list, "0", "-1"]);
        ask("LMOVE", &[&list, &other, "RIGHT", "LEFT"]);
        ask("PEXPIRE", &[&other, &millis]);
        ask("BLMOVE", &[&list, &other, "RIGHT", "LEFT", "1"]);
    } else {
        let stream = key("x");
        ask("XADD", &[&stream, "*", "data", "1"]);
        ask("PEXPIRE", &[&stream, &millis]);
        ask("XGROUP", &["CREATE", &stream, "g", "0", "MKSTREAM"]);
        ask("XREADGROUP", &["GROUP", "g", "c", "COUNT", "1", "STREAMS", &stream, ">"]);
        ask("XREAD", &["COUNT", "1", "STREAMS", &stream, "0"]);
        ask("XPENDING", &[&stream, "g"]);
        ask("XAUTOCLAIM", &[&stream, "g", "c", "0", "0"]);
        ask("XINFO", &["GROUPS", &stream]);
        ask("XLEN", &[&stream]);
        ask("XACK", &[&stream, "g", "1-1"]);
        ask("XDEL", &[&stream, "1-1"]);
        ask("DEL", &[&stream]);
    }
    ask("ZREM", &[&set, "a"]);
    ask("DEL", &[&text, &list, &other]);
    all
}

/// Whether each stream is in its own slot.
fn is_apart(settings: &Settings) -> bool {
    settings.server.is_cluster() && settings.mode == SourceMode::Stream
}

/// This agent's leases: in a cluster one beside each stream.
fn leases(settings: &Settings) -> Vec<LeaseKeys> {
    settings.names.leases(is_apart(settings))
}

/// A write without effect for each key that the agent writes to.
fn changes_of_nothing(settings: &Settings) -> Vec<Cmd> {
    let (names, mode) = (&settings.names, settings.mode);
    let mut all: Vec<Cmd> = Vec::new();
    let mut ask = |name: &str, key: &str, args: &[&str]| {
        let mut command = cmd(name);
        command.arg(key).arg(args);
        all.push(command);
    };
    let nobody = Uuid::new_v4().to_string();
    ask("LTRIM", &names.quota_response, &["0", "-1"]);
    ask("LTRIM", &names.dead_letters, &["0", "-1"]);
    for LeaseKeys { lease, agents } in leases(settings) {
        ask("ZREM", &agents, &[&nobody]);
        ask("SETRANGE", &lease, &["0", ""]);
    }
    for queue in Queue::ALL {
        ask("LTRIM", &names.oversize(queue, is_apart(settings)), &["0", "-1"]);
        if mode == SourceMode::List {
            ask("LTRIM", names.queue(queue), &["0", "-1"]);
            ask("LTRIM", &names.in_flight(queue), &["0", "-1"]);
            ask("SETRANGE", &names.acked(queue), &["0", ""]);
            ask("SETRANGE", &names.wakeup_of(queue, &names.server_id), &["0", ""]);
        } else {
            ask("XDEL", names.queue(queue), &["0-0"]);
        }
    }
    all
}

/// Checks the types of the queues.
async fn queues(connection: &mut Connection, settings: &Settings) -> Finding {
    let names = &settings.names;
    let taken = if settings.mode == SourceMode::List { "list" } else { "stream" };
    let mut expected: Vec<(String, &str)> =
        Queue::ALL.iter().map(|queue| (names.queue(*queue).to_owned(), taken)).collect();
    expected.extend([(names.quota_response.clone(), "list"), (names.dead_letters.clone(), "list")]);
    expected.extend(Queue::ALL.iter().map(|queue| (names.oversize(*queue, is_apart(settings)), "list")));
    if settings.mode == SourceMode::List {
        expected.extend(Queue::ALL.iter().map(|queue| (names.in_flight(*queue), "list")));
    }
    let mut wrong = Vec::new();
    let (mut present, mut in_flight) = (0, 0);
    for (name, kind) in &expected {
        match cmd("TYPE").arg(name).query_async::<String>(connection).await {
            Ok(found) if found == "none" => {}
            Ok(found) if found == *kind => {
                let is_queue = Queue::ALL.iter().any(|queue| names.queue(*queue) == name);
                let is_in_flight = Queue::ALL.iter().any(|queue| names.in_flight(*queue) == *name);
                if is_queue {
                    present += length(connection, name, kind).await;
                }
                in_flight += match settings.mode {
                    SourceMode::List if is_in_flight => length(connection, name, kind).await,
                    SourceMode::Stream if is_queue => pending(connection, name).await,
                    SourceMode::List | SourceMode::Stream => 0,
                };
            }
            Ok(found) => wrong.push(format!("{name} is a {found}, but must be a {kind}")),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    if !wrong.is_empty() {
        let advice = "check SOURCE_MODE, the five queue names, and other users of these keys";
        return Finding::failed(QUEUES, wrong.join("; "), advice);
    }
    // A stream keeps its pending entries until they are acknowledged; a list no longer holds them.
    let (waiting, by) = match settings.mode {
        SourceMode::List => (present, "this agent"),
        SourceMode::Stream => (present.saturating_sub(in_flight), "the agents"),
    };
    Finding::ok(
        QUEUES,
        format!(
            "types are correct; messages waiting to be taken: {waiting}; taken by {by} and not acknowledged yet: {in_flight} \
             (Redis keeps these until they are on the agent's disk)"
        ),
    )
}

/// The messages in a queue; 0 if Redis does not say: [`rights`] reports that.
async fn length(connection: &mut Connection, name: &str, kind: &str) -> u64 {
    let length = cmd(if kind == "list" { "LLEN" } else { "XLEN" });
    { length }.arg(name).query_async(connection).await.unwrap_or(0)
}

/// The entries of a stream that agents have taken and not acknowledged; 0 before its group exists.
async fn pending(connection: &mut Connection, name: &str) -> u64 {
    let summary = cmd("XPENDING").arg(name).arg(GROUP).query_async::<redis::Value>(connection).await;
    // The count, the first and the last id, and the consumers.
    match summary {
        Ok(redis::Value::Array(fields)) => match fields.first() {
            Some(redis::Value::Int(count)) => u64::try_from(*count).unwrap_or(0),
            _ => 0,
        },
        _ => 0,
    }
}

/// Checks which agent holds our ID.
async fn holder(connection: &mut Connection, settings: &Settings, own: Option<Uuid>) -> Option<Finding> {
    let names = &settings.names;
    let mut holders = Vec::new();
    for LeaseKeys { lease, .. } in leases(settings) {
        let held = cmd("GET").arg(lease).query_async::<Option<String>>(connection).await.ok()?;
        holders.extend(held.map(|lease| lease.split('/').next().unwrap_or_default().to_owned()));
    }
    let own = own.map(|own| own.to_string());
    let holder = holders.iter().find(|holder| Some(*holder) != own.as_ref()).or(holders.first())?;
    if Some(holder) == own.as_ref() {
        return Some(Finding::ok(
            "server_id",
            format!("{} is in use by this agent, which is running", names.server_id),
        ));
    }
    let uses = format!("with outbox {holder}, uses SERVER_ID {}", names.server_id);
    let (says, advice) = match own {
        Some(_) => (
            format!("another agent, {uses}"),
            "give each agent its own SERVER_ID; if the other agent has just ended, wait 10 seconds",
        ),
        None => (
            format!("an agent, {uses}, and OUTBOX_DIR has no outbox"),
            "if that agent runs on this machine, its outbox was moved: put it back, or correct OUTBOX_DIR; otherwise give \
             each agent its own SERVER_ID. If that agent has just ended, wait 10 seconds",
        ),
    };
    Some(Finding::failed("server_id", says, advice))
}
