//! The headers of the contract.

pub(super) const API_KEY: &str = "x-api-key";
pub(super) const CORRELATION_ID: &str = "x-correlation-id";
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";
