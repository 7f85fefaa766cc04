//! `attnbench completions`: what a shell needs to complete commands and options.

use clap_complete::Shell;

use super::{Command, Exit, terminal};

/// Print a completion script for a shell
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench completions bash > ~/.local/share/bash-completion/completions/attnbench
  attnbench completions zsh > ~/.zfunc/_attnbench
  attnbench completions fish > ~/.config/fish/completions/attnbench.fish")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    use clap::Subcommand;
    let mut command = Command::augment_subcommands(clap::Command::new("attnbench"));
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "attnbench", &mut script);
    terminal::print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Pass)
}
