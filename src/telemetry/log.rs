//! The log: one line per event, for people (`log4j`) or machines (`json`).
//!
//! A thread of its own writes the lines from a bounded queue, so a full disk or a pipe that nobody reads never delays a
//! record. Lines that do not fit into the queue are dropped.

mod daily;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use daily::DailyFile;

/// Marks an error as critical: the agent cannot continue.
const CRITICAL: &str = "critical";
/// Our crate logs from `LOG_LEVEL` on; libraries log warnings and errors at least.
const OWN: &str = env!("CARGO_CRATE_NAME");
/// Capacity of the queue; further lines are dropped. The queue's slots alone take half a MiB.
const QUEUED_LINES: usize = 16_384;

/// How severe an event is; the names are the previous agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "UPPERCASE", try_from = "String")]
pub enum Level {
    /// For debugging.
    Debug,
    /// A change of state.
    Info,
    /// Something is wrong, but the agent copes.
    Warning,
    /// Something failed.
    Error,
    /// The agent cannot continue.
    Critical,
}

impl Level {
    const fn label(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => CRITICAL,
        }
    }

    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            tracing::Level::ERROR if metadata.fields().field(CRITICAL).is_some() => Self::Critical,
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// As in `LOG_LEVEL`, in any case.
impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::from_str(&text, true)
            .map_err(|_| format!("{text:?} is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL"))
    }
}

impl ValueEnum for Level {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Debug, Self::Info, Self::Warning, Self::Error, Self::Critical]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.label().to_ascii_uppercase());
        Some(if *self == Self::Warning { value.alias("WARN") } else { value })
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `<time> [<level>]: <message> <fields as JSON>`.
    Log4j,
    /// One JSON object.
    Json,
}

/// What is logged, in which format, and where.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The `serviceName` in every line.
    pub service_name: String,
    /// The least severe level that is logged.
    pub level: Level,
    /// The form of a line.
    pub format: Format,
    /// The log file, a new one each day; `None`: standard output.
    pub file: Option<PathBuf>,
    /// How many files of past days to keep besides today's.
    pub retention_days: u32,
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `LOG_FILE` cannot be written.
    #[error("LOG_FILE {}: cannot be opened", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The log is already set up.
    #[error("the log of this process is already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// The least severe level that is logged. It can change while the process runs; clones share it.
#[derive(Clone, Debug)]
pub struct LogLevel(Arc<AtomicU8>);

impl LogLevel {
    /// The initial level.
    pub fn new(level: Level) -> Self {
        Self(Arc::new(AtomicU8::new(level as u8)))
    }

    /// The current level.
    pub fn get(&self) -> Level {
        let now = self.0.load(Ordering::Relaxed);
        Level::value_variants().iter().copied().find(|level| *level as u8 == now).unwrap_or(Level::Info)
    }

    /// Changes the level.
    pub fn set(&self, level: Level) {
        let before = self.get();
        if level > before {
            // Logged before the new level suppresses it.
            tracing::warn!(level = level.label(), before = before.label(), "log level raised");
        }
        if self.0.swap(level as u8, Ordering::Relaxed) != level as u8 {
            // Each call site caches whether its level is enabled.
            tracing::callsite::rebuild_interest_cache();
        }
        if level < before {
            tracing::warn!(level = level.label(), before = before.label(), "log level lowered");
        }
    }
}

/// Starts the log of this process. Dropping the guard writes what is queued.
pub fn init(config: &LogConfig, level: LogLevel) -> Result<WorkerGuard, LogError> {
    let (writer, guard) = match &config.file {
        Some(path) => {
            let keep = config.retention_days as usize;
            let file = DailyFile::open(path, keep, Box::new(|| chrono::Utc::now().date_naive()));
            let file = file.map_err(|source| LogError::File { path: path.clone(), source })?;
            queued().finish(file)
        }
        None => queued().finish(io::stdout()),
    };
    let wanted = filter_fn(move |metadata| {
        let least = level.get();
        let own = metadata.target().starts_with(OWN);
        Level::of(metadata) >= if own { least } else { least.max(Level::Warning) }
    });
    let layer = tracing_subscriber::fmt::layer()
        .event_format(Lines::new(config))
        .with_writer(writer)
        .with_filter(wanted);
    tracing_subscriber::registry().with(layer).try_init()?;
    Ok(guard)
}

fn queued() -> NonBlockingBuilder {
    NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES)
}

/// Formats events as lines.
struct Lines {
    format: Format,
    service_name: String,
    hostname: String,
    pid: u32,
}

impl Lines {
    fn new(config: &LogConfig) -> Self {
        let hostname =
            hostname::get().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        Self {
            format: config.format,
            service_name: config.service_name.clone(),
            hostname,
            pid: std::process::id(),
        }
    }

    fn line(&self, time: &str, level: Level, operation: &str, fields: Fields) -> String {
        let Fields { message, mut values } = fields;
        values.remove(CRITICAL);
        values.entry("correlation_id").or_insert_with(|| "-".into());
        values.insert("hostname", self.hostname.as_str().into());
        values.insert("operationName", operation.into());
        values.insert("pid", self.pid.into());
        values.insert("serviceName", self.service_name.as_str().into());
        match self.format {
            Format::Log4j => {
                // An event is one line, even if its message contains line breaks.
                let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                format!("{time} [{}]: {message} {}", level.label(), json(&values))
            }
            Format::Json => {
                values.insert("timestamp", time.into());
                values.insert("level", level.label().into());
                values.insert("event", message.into());
                json(&values)
            }
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // A map of strings to values always serialises.
    serde_json::to_string(value).unwrap_or_default()
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        // The module names the operation: `dataplane_agent::drain::link` is `drain`.
        let operation = metadata.target().split("::").nth(1).unwrap_or(metadata.target());
        let time = crate::time::now().to_rfc3339();
        writeln!(writer, "{}", self.line(&time, Level::of(metadata), operation, fields))
    }
}

/// An event's message and fields.
#[derive(Default)]
struct Fields {
    message: String,
    values: BTreeMap<&'static str, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(message)) => self.message = message,
            (name, value) => drop(self.values.insert(name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    /// Includes the error's causes: the outermost error is rarely enough to act on.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let chain = std::iter::successors(Some(value), |error| error.source());
        self.set(field, chain.map(ToString::to_string).collect::<Vec<_>>().join(": ").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(format: Format) -> Lines {
        Lines { format, service_name: "DataPlane Agent".into(), hostname: "edge-1".into(), pid: 1234 }
    }

    fn fields() -> Fields {
        let mut fields = Fields { message: "it\nis so".into(), ..Fields::default() };
        fields.values.insert("reason", "full".into());
        fields.values.insert(CRITICAL, true.into());
        fields
    }

    const TIME: &str = "2025-09-25T03:21:53.717866Z";

    #[test]
    fn log4j_is_a_line_with_sorted_keys_whatever_the_message_holds() {
        let line = lines(Format::Log4j).line(TIME, Level::Critical, "drain", fields());
        let expected = concat!(
            "2025-09-25T03:21:53.717866Z [critical]: it is so ",
            r#"{"correlation_id":"-","hostname":"edge-1","operationName":"drain","pid":1234,"#,
            r#""reason":"full","serviceName":"DataPlane Agent"}"#
        );
        assert_eq!(line, expected);
    }

    #[test]
    fn json_is_one_object_with_the_same_keys() {
        let line = lines(Format::Json).line(TIME, Level::Warning, "drain", fields());
        let object: Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(object["timestamp"], TIME);
        assert_eq!(object["level"], "warning");
        assert_eq!(object["event"], "it\nis so");
        assert_eq!(object["serviceName"], "DataPlane Agent");
        assert_eq!(object["reason"], "full");
    }

    #[test]
    fn levels_are_ordered_and_read_by_the_previous_agents_names() {
        assert!(
            Level::Debug < Level::Info && Level::Warning < Level::Error && Level::Error < Level::Critical
        );
        for name in ["DEBUG", "info", "WARN", "Warning", "ERROR", "CRITICAL"] {
            assert!(Level::from_str(name, true).is_ok(), "{name}");
            let json = serde_json::to_string(&name.to_lowercase()).unwrap();
            assert!(serde_json::from_str::<Level>(&json).is_ok(), "{name}");
        }
    }
}
