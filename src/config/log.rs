//! Settings of the log: level, format, destination.

use std::path::PathBuf;

use crate::telemetry::log::{Format, Level, LogConfig};

use super::load::{Review, SettingsGroup};
use super::values::{boolean, whole};

/// The log.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logging")]
pub struct LogSettings {
    /// Least severe level that is logged
    #[arg(id = "LOG_LEVEL", default_value = "INFO")]
    pub level: Level,

    /// Log everything, like LOG_LEVEL=DEBUG
    #[arg(id = "DEBUG", default_value = "false", value_parser = boolean)]
    pub debug: bool,

    /// Format of a line
    #[arg(id = "LOG_FORMAT", default_value = "log4j")]
    pub format: Format,

    /// Log to this file instead of standard output; a new file each day
    #[arg(id = "LOG_FILE")]
    pub file: Option<PathBuf>,

    /// Days of past log files to keep, each <LOG_FILE>.YYYY-MM-DD
    #[arg(id = "LOG_RETENTION_DAYS", default_value = "7", value_parser = whole(1, 3_650))]
    pub retention_days: u32,
}

impl SettingsGroup for LogSettings {
    fn check(&mut self, review: &mut Review) {
        let Some(file) = &self.file else { return };
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        if file.is_dir() || file.file_name().is_none() {
            review.problem("LOG_FILE", format!("{} is a folder", file.display()));
        } else if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            review.problem("LOG_FILE", format!("folder {} does not exist", folder.display()));
        }
    }
}

impl LogSettings {
    pub(super) fn with_service_name(&self, service_name: &str) -> LogConfig {
        LogConfig {
            service_name: service_name.to_owned(),
            level: if self.debug { Level::Debug } else { self.level },
            format: self.format,
            file: self.file.clone(),
            retention_days: self.retention_days,
        }
    }
}
