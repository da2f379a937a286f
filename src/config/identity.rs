//! The agent's identity towards the `ControlPlane` and in the logs.

use super::values::{host, identifier, name, port, version};

/// The agent's identity.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Identity")]
pub struct IdentityConfig {
    /// This agent's ID: names its in-flight lists and is sent with every record
    #[arg(id = "SERVER_ID", required = true, value_parser = identifier)]
    pub server_id: String,

    /// The region this agent serves
    #[arg(id = "SERVER_REGION", required = true, value_parser = name)]
    pub server_region: String,

    /// Address of the edge server, as reported to the ControlPlane
    #[arg(id = "DATAPLANE_HOST", required = true, value_parser = host)]
    pub dataplane_host: String,

    /// Port of the edge server, as reported to the ControlPlane
    #[arg(id = "DATAPLANE_PORT", default_value = "8000", value_parser = port)]
    pub dataplane_port: u16,

    /// The service's name in the logs
    #[arg(id = "APP_NAME", default_value = "DataPlane Agent", value_parser = name)]
    pub app_name: String,

    /// The version this agent reports
    #[arg(id = "APP_VERSION", default_value = env!("CARGO_PKG_VERSION"), value_parser = version)]
    pub app_version: String,
}
