//! Files that a package ships beside the program, generated from the command line's declaration.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Command;

use super::out::print;

/// The program's name.
const NAME: &str = "dataplane-agent";

#[derive(clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub(super) struct ManArgs {
    /// Writes all pages, one per subcommand, to this folder, instead of the first one to standard output
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, NAME, &mut script);
    print(&script)
}

pub(super) fn man(command: Command, args: &ManArgs) -> anyhow::Result<()> {
    if let Some(dir) = &args.dir {
        return clap_mangen::generate_to(command, dir).with_context(|| dir.display().to_string());
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&page)
}
