//! What a command needs that speaks to a `ControlPlane` without being an agent.

use super::load::{Review, SettingsGroup};
use super::{ControlPlaneConfig, IdentityConfig};

/// Who speaks, and to whom.
#[derive(Clone, Debug, clap::Args)]
pub struct PeerConfig {
    /// Who speaks.
    #[command(flatten)]
    pub identity: IdentityConfig,
    /// To whom, and with which credentials.
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
