//! What an operator does to an outbox: looking, verifying, moving it, bringing back what was given up or damaged.

pub(crate) mod inspect;
pub(crate) mod probe;
pub(crate) mod replay;
pub(crate) mod salvage;
pub(crate) mod transfer;
pub(crate) mod verify;
