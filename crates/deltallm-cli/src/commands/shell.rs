//! Completions for shells and pages for `man`, from the command line itself.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use crate::print;

/// Write completions for a shell to stdout
#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_enum, value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

/// Write the man page to stdout, or that of every command to a folder
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Folder that exists, for deltallm.1, deltallm-generate.1 and so on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs, mut program: Command) -> anyhow::Result<()> {
    let (name, mut script) = (program.get_name().to_owned(), Vec::new());
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    print(String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &ManArgs, program: Command) -> anyhow::Result<()> {
    match &args.out {
        Some(folder) => clap_mangen::generate_to(program, folder)
            .with_context(|| format!("--out {}: cannot write", folder.display())),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(program).render(&mut page)?;
            print(String::from_utf8_lossy(&page))
        }
    }
}
