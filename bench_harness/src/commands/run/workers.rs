//! Which providers may run, and how their workers are started.
//!
//! A foreign provider runs only when it is named here: a suite file that names one starts nothing.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use crate::case::check_name;
use crate::worker::client::WorkerCommand;

/// Providers that are part of this binary.
const BUILT_IN: [&str; 1] = ["cpu"];

/// The worker of a built-in provider: this binary itself.
pub(super) fn built_in(provider: &str) -> anyhow::Result<WorkerCommand> {
    let program = std::env::current_exe().context("finding this program, which is its own worker")?;
    let argv = [program.to_string_lossy().as_ref(), "worker", "--provider", provider].map(str::to_owned).to_vec();
    Ok(WorkerCommand { provider: provider.to_owned(), argv })
}

/// The built-in providers and those of `--provider NAME[=COMMAND]`.
pub(super) fn commands(options: &[String]) -> anyhow::Result<BTreeMap<String, WorkerCommand>> {
    let mut commands = BTreeMap::new();
    for name in BUILT_IN {
        commands.insert(name.to_owned(), built_in(name)?);
    }
    for option in options {
        let (name, command) = match option.split_once('=') {
            Some((name, command)) => (name, Some(command)),
            None => (option.as_str(), None),
        };
        check_name(name).map_err(|reason| anyhow::anyhow!("reading --provider `{option}`: {reason}"))?;
        match command {
            None if BUILT_IN.contains(&name) => {}
            None => bail!(
                "reading --provider `{option}`: `{name}` is not built in ({}); name its worker: \
                 --provider {name}='COMMAND ARGS'",
                BUILT_IN.join(", ")
            ),
            Some(command) => {
                let argv = split_words(command).filter(|words| !words.is_empty()).with_context(|| {
                    format!("reading --provider `{option}`: the command is empty or a quote is open")
                })?;
                commands.insert(name.to_owned(), WorkerCommand { provider: name.to_owned(), argv });
            }
        }
    }
    Ok(commands)
}

/// Words as a shell would split them: blanks separate, quotes and backslashes protect. None where a quote stays open.
fn split_words(text: &str) -> Option<Vec<String>> {
    shlex::split(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_split_and_never_interpreted() {
        let commands = commands(&["mine=python3 'my worker.py' $HOME;ls".to_owned()]).expect("well-formed");
        assert_eq!(commands["mine"].argv, ["python3", "my worker.py", "$HOME;ls"]);
        assert_eq!(commands.len(), 2, "cpu is always there");
    }

    #[test]
    fn bad_options_name_the_way_out() {
        let error = |option: &str| commands(&[option.to_owned()]).expect_err("refused").to_string();
        assert!(error("torch").contains("--provider torch='COMMAND ARGS'"));
        assert!(error("Bad Name=x").contains("`Bad Name`"));
        assert!(error("mine=").contains("empty"));
        assert!(error("mine='open").contains("quote"));
    }
}
