//! Integration tests: a file a behaviour.

mod env_example;
mod unit_file;
