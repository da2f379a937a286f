//! Integration tests: a file, or a folder, a behaviour.

mod outbox;
