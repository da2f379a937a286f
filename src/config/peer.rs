//! Settings of a command that calls a `ControlPlane` without being an agent.

use super::load::{Review, SettingsGroup};
use super::{ControlPlaneConfig, IdentityConfig};

/// The caller and the `ControlPlane`.
#[derive(Clone, Debug, clap::Args)]
pub struct PeerConfig {
    /// The caller's identity.
    #[command(flatten)]
    pub identity: IdentityConfig,
    /// The `ControlPlane` and its credentials.
    #[command(flatten)]
    pub control_plane: ControlPlaneConfig,
}

impl SettingsGroup for PeerConfig {
    fn check(&mut self, review: &mut Review) {
        self.control_plane.check(review);
        if review.is_good() {
            self.control_plane.check_client(&self.identity, review);
        }
    }
}
