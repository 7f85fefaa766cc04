//! Which providers may run, and how their workers are started.
//!
//! A foreign provider runs only when it is named here: a suite file that names one starts nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};

use crate::case::check_name;
use crate::worker::adapters;
use crate::worker::client::WorkerCommand;

/// Providers that are part of this binary.
const BUILT_IN: [&str; 1] = ["cpu"];

/// The worker of a built-in provider: this binary itself.
pub(in crate::commands) fn built_in(provider: &str) -> anyhow::Result<WorkerCommand> {
    let program = std::env::current_exe().context("finding this program, which is its own worker")?;
    let argv = [program.to_string_lossy().as_ref(), "worker", "--provider", provider].map(str::to_owned).to_vec();
    Ok(WorkerCommand { provider: provider.to_owned(), argv })
}

/// The built-in providers and those of `--provider NAME[=COMMAND]`. The sources of adapters are written to `scratch`.
pub(in crate::commands) fn commands(
    options: &[String],
    scratch: &Path,
) -> anyhow::Result<BTreeMap<String, WorkerCommand>> {
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
            None => {
                let adapter = adapters::command(name, scratch)
                    .with_context(|| format!("reading --provider `{option}`: writing its worker's sources"))?;
                let Some(adapter) = adapter else {
                    let known: Vec<&str> = BUILT_IN.into_iter().chain(adapters::names()).collect();
                    bail!(
                        "reading --provider `{option}`: `{name}` is not one that is known ({}); name its worker: \
                         --provider {name}='COMMAND ARGS'",
                        known.join(", ")
                    );
                };
                commands.insert(name.to_owned(), adapter);
            }
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
        let commands =
            commands(&["mine=python3 'my worker.py' $HOME;ls".to_owned()], Path::new("/nowhere")).expect("well-formed");
        assert_eq!(commands["mine"].argv, ["python3", "my worker.py", "$HOME;ls"]);
        assert_eq!(commands.len(), 2, "cpu is always there");
    }

    #[test]
    fn bad_options_name_the_way_out() {
        let nowhere = Path::new("/nowhere");
        let error = |option: &str| commands(&[option.to_owned()], nowhere).expect_err("refused").to_string();
        assert!(error("mlx").contains("(cpu, cudnn, flash_attn, ggml, jax, onnxruntime, torch)"));
        assert!(error("mlx").contains("--provider mlx='COMMAND ARGS'"));
        assert!(error("Bad Name=x").contains("`Bad Name`"));
        assert!(error("mine=").contains("empty"));
        assert!(error("mine='open").contains("quote"));
    }

    #[test]
    fn known_adapters_need_no_command() {
        let scratch = tempfile::tempdir().expect("a temporary folder");
        let commands = commands(&["torch".to_owned()], scratch.path()).expect("known");
        let [_, script] = &commands["torch"].argv[..] else { panic!("{:?}", commands["torch"]) };
        let folder = Path::new(script).parent().expect("a folder");
        assert!(folder.starts_with(scratch.path()));
        for file in ["torch_worker.py", "attnbench_torch.py", "attnbench_worker.py", "attnbench_inputs.py"] {
            assert!(folder.join(file).exists(), "{file} lies beside {script}");
        }
    }
}
