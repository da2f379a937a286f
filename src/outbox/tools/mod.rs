//! Operator actions on an outbox: inspecting, verifying, moving, replaying and salvaging.

pub(crate) mod inspect;
pub(crate) mod probe;
pub(crate) mod replay;
pub(crate) mod salvage;
pub(crate) mod transfer;
pub(crate) mod verify;
