//! The `ControlPlane`'s public keys: cached, and fetched again for a token with an unknown key.
//!
//! A sender of commands can send any number that name unknown keys, or that are signed with another key than they name (a key
//! may have been replaced under its name). So keys that are too old are fetched at most once a round, and unknown keys at most
//! every [`EXTRA_EVERY`]. A command that cannot be judged meanwhile waits for the next round.

use std::time::Duration;

use jsonwebtoken::jwk::JwkSet;
use tokio::time::Instant;

use super::token::{TokenError, TokenVerifier, VerifiedToken};
use crate::control_plane::{CallError, Client, Command};
use crate::drain::Admission;

/// Minimum interval of fetches for an unknown or replaced key.
const EXTRA_EVERY: Duration = Duration::from_secs(10);
/// The longest time that a fetch waits for admission.
const TURN_WITHIN: Duration = Duration::from_secs(30);

/// Why no keys are available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoKeys {
    #[error("cannot fetch the public keys: {0}")]
    Call(#[from] CallError),
    #[error("cannot fetch the public keys while the link is down")]
    NoTurn,
    #[error("the public keys were just fetched")]
    TooSoon,
}

/// The verdict on a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenCheck {
    /// The token is valid.
    Good(VerifiedToken),
    /// The token is invalid.
    Bad(TokenError),
    /// The token cannot be verified now.
    NotNow(NoKeys),
}

struct CachedKeys {
    set: JwkSet,
    /// The time before the request: the keys were current then or later.
    at: Instant,
}

/// The cached keys.
pub(super) struct KeyCache {
    ttl: Duration,
    held: Option<CachedKeys>,
    /// The last failed fetch, and the round it was made for.
    failed: Option<(Instant, NoKeys)>,
    /// The last fetch for an unknown key.
    extra_at: Option<Instant>,
}

impl KeyCache {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, held: None, failed: None, extra_at: None }
    }

    /// Judges the token of a command that was received at `received`.
    pub(super) async fn judge(
        &mut self,
        (client, admission): (&Client, &Admission),
        verifier: &TokenVerifier,
        command: &Command,
        received: Instant,
    ) -> TokenCheck {
        if let Err(refusal) = verifier.token(command) {
            return TokenCheck::Bad(refusal);
        }
        let is_old =
            self.held.as_ref().is_none_or(|held| held.at.elapsed() >= self.ttl && held.at < received);
        if is_old && let Err(why) = self.fetch(client, admission, received).await {
            return TokenCheck::NotNow(why);
        }
        let verify = |keys: &Self| match &keys.held {
            Some(held) => verifier.verify(command, &held.set, client.unix_seconds()),
            None => Err(TokenError::UnknownKey),
        };
        let is_newer = |keys: &Self| keys.held.as_ref().is_some_and(|held| held.at >= received);
        match verify(self) {
            Ok(grant) => TokenCheck::Good(grant),
            Err(TokenError::UnknownKey | TokenError::Signature) if !is_newer(self) => {
                if self.extra_at.is_some_and(|at| at.elapsed() < EXTRA_EVERY) {
                    return TokenCheck::NotNow(NoKeys::TooSoon);
                }
                self.extra_at = Some(Instant::now());
                match self.fetch(client, admission, received).await {
                    Ok(()) => verify(self).map_or_else(TokenCheck::Bad, TokenCheck::Good),
                    Err(why) => TokenCheck::NotNow(why),
                }
            }
            Err(refusal) => TokenCheck::Bad(refusal),
        }
    }

    /// Fetches the keys, unless this round has done so. Returns their names.
    pub(super) async fn refresh(
        &mut self,
        client: &Client,
        admission: &Admission,
        received: Instant,
    ) -> Result<Vec<Option<&str>>, NoKeys> {
        if self.held.as_ref().is_none_or(|held| held.at < received) {
            self.fetch(client, admission, received).await?;
        }
        let keys = self.held.iter().flat_map(|held| &held.set.keys);
        Ok(keys.map(|key| key.common.key_id.as_deref()).collect())
    }

    async fn fetch(
        &mut self,
        client: &Client,
        admission: &Admission,
        received: Instant,
    ) -> Result<(), NoKeys> {
        if let Some((round, why)) = &self.failed
            && *round == received
        {
            return Err(why.clone());
        }
        let fetched = if admission.take(TURN_WITHIN).await {
            let at = Instant::now();
            client.public_keys().await.map(|set| CachedKeys { set, at }).map_err(NoKeys::from)
        } else {
            Err(NoKeys::NoTurn)
        };
        match fetched {
            Ok(held) => {
                tracing::debug!(keys = held.set.keys.len(), "fetched the ControlPlane's public keys");
                (self.held, self.failed) = (Some(held), None);
                Ok(())
            }
            Err(why) => {
                self.failed = Some((received, why.clone()));
                Err(why)
            }
        }
    }
}
