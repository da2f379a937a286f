//! The agent from outside: real processes, a real Redis, a real HTTP server. A file a behaviour.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(clippy::float_cmp, reason = "metrics that count are whole numbers")]

mod admin;
mod adopts_the_previous_agents_records;
mod bad_answers;
mod batches;
mod check;
mod command_line_of_a_running_agent;
mod commands;
mod commands_and_crashes;
mod configuration_errors;
mod correlation;
mod crash_points;
mod credentials;
mod delivers_everything_once_and_in_order;
mod env_example;
mod file_size_limit;
mod fleet_membership;
mod harness;
mod http_surface;
mod identity;
mod large_records;
mod log_files;
mod monitoring;
mod one_route_fails;
mod openapi;
mod outbox;
mod outcomes_of_answers;
mod quota_goes_first;
mod redis_cluster;
mod redis_comes_and_goes;
mod redis_in_the_field;
mod redis_over_tls;
mod redis_sentinel;
mod refuses_everything;
mod rounds_of_the_intake;
mod samples;
mod samples_through_an_agent;
mod several_agents;
mod status_page;
mod stops_in_order;
mod stops_taking_when_full;
mod streams;
mod surface_under_siege;
mod survives_faults;
mod survives_kill;
mod survives_outages;
mod survives_without_its_folder;
mod tells_systemd;
mod tls_and_tokens;
mod top;
mod unit_file;
mod unknown_sessions;
