//! The `dataplane-agent` binary.

fn main() -> std::process::ExitCode {
    dataplane_agent::cli::main()
}
