//! Integration tests: a file a behaviour.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails, also in its helpers"
)]

mod env_example;
mod samples;
mod unit_file;
