//! `attnbench schema`: the published JSON Schemas.

use super::{Exit, terminal};
use crate::record::schema::{PublishedSchema, SCHEMAS};

/// Print the JSON Schema of a record, a baseline, the worker protocol or a GPU trace
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  attnbench schema > record.schema.json
  attnbench schema protocol    what a worker in another language has to speak")]
pub struct Args {
    /// Which schema
    #[arg(default_value = SCHEMAS[0].name, value_parser = names())]
    name: String,
}

/// The names, with what they describe.
fn names() -> clap::builder::PossibleValuesParser {
    SCHEMAS
        .iter()
        .map(|schema| clap::builder::PossibleValue::new(schema.name).help(schema.summary))
        .collect::<Vec<_>>()
        .into()
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let schema = PublishedSchema::find(&args.name).expect("clap accepts only names of the table");
    terminal::print(schema.text().trim_end())?;
    Ok(Exit::Pass)
}
