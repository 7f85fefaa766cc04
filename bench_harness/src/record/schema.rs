//! The published JSON Schemas, generated from the types that are read and written.

use schemars::{JsonSchema, Schema};

use super::Record;
use crate::compare::Baseline;
use crate::gate::calibration::Calibration;
use crate::gate::outcome::GateReport;
use crate::worker::protocol;

/// A published schema.
#[derive(Clone, Copy, Debug)]
pub struct PublishedSchema {
    /// Its name on the command line and in its file's name.
    pub name: &'static str,
    /// What it describes.
    pub summary: &'static str,
    generate: fn() -> Schema,
}

/// Every published schema: `schema/<name>.schema.json` holds each.
pub const SCHEMAS: &[PublishedSchema] = &[
    PublishedSchema { name: "record", summary: "what `attnbench run` writes", generate: schema_for::<Record> },
    PublishedSchema {
        name: "baseline",
        summary: "what `attnbench baseline save` writes",
        generate: schema_for::<Baseline>,
    },
    PublishedSchema { name: "gate", summary: "what `attnbench gate` reports", generate: schema_for::<GateReport> },
    PublishedSchema {
        name: "calibration",
        summary: "what `attnbench calibrate` writes",
        generate: schema_for::<Calibration>,
    },
    PublishedSchema {
        name: "protocol",
        summary: "lines between the coordinator and a worker",
        generate: schema_for::<ProtocolLines>,
    },
];

/// A line of the worker protocol. Which answer belongs to which request is said at each request.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "this type exists for its schema")]
enum ProtocolLines {
    /// From the coordinator to the worker.
    Request(protocol::Envelope),
    /// From the worker to the coordinator.
    Answer(ProtocolAnswer),
}

/// An answer with the request's number.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "this type exists for its schema")]
struct ProtocolAnswer {
    /// Number of the request.
    id: u64,
    /// `ok` or `error`.
    #[schemars(flatten)]
    result: ProtocolResult,
}

/// What an answer says.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[allow(dead_code, reason = "this type exists for its schema")]
enum ProtocolResult {
    /// The result.
    Ok(ProtocolOk),
    /// Or why there is none.
    Error(protocol::WorkerError),
}

/// The result of a request.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code, reason = "this type exists for its schema")]
enum ProtocolOk {
    /// To `hello`.
    Hello(protocol::Hello),
    /// To `kernels`.
    Kernels(protocol::KernelList),
    /// To `prepare`.
    Prepared(protocol::Prepared),
    /// To `measure`.
    Measured(protocol::Measured),
    /// To `memory`.
    Memory(protocol::Memory),
    /// To `control`.
    Control(protocol::ControlSamples),
    /// To everything else.
    Done(protocol::Done),
}

fn schema_for<T: JsonSchema>() -> Schema {
    schemars::schema_for!(T)
}

impl PublishedSchema {
    /// The schema of that name.
    pub fn find(name: &str) -> Option<&'static PublishedSchema> {
        SCHEMAS.iter().find(|schema| schema.name == name)
    }

    /// The schema as indented JSON that ends with a line break.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(&(self.generate)()).expect("a schema is JSON");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::sample;
    use serde_json::{Value, json};
    use std::path::PathBuf;

    /// Set this variable and run the tests to write the files anew.
    const UPDATE_VARIABLE: &str = "ATTNBENCH_UPDATE_SCHEMAS";

    #[test]
    fn committed_schemas_are_the_generated_ones() {
        for schema in SCHEMAS {
            let file = format!("schema/{}.schema.json", schema.name);
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(&file);
            if std::env::var_os(UPDATE_VARIABLE).is_some() {
                crate::files::write_atomically(&path, schema.text().as_bytes()).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                committed == schema.text(),
                "{file} is not what the types say: run the tests with {UPDATE_VARIABLE}=1, and if old files no longer \
                 validate, raise the format's major version"
            );
        }
    }

    /// The first error of a value under a schema.
    fn check(name: &str, value: &Value) -> Result<(), String> {
        let schema: Value = serde_json::from_str(&PublishedSchema::find(name).unwrap().text()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        validator.validate(value).map_err(|error| format!("{} at {}", error, error.instance_path()))
    }

    #[test]
    fn a_record_and_its_baseline_validate_and_broken_ones_do_not() {
        let record = sample::record();
        let mut value: Value = serde_json::from_str(&crate::report::json::reviewable(&record).unwrap()).unwrap();
        check("record", &value).unwrap();
        value["cases"][0]["disposition"] = json!("fine");
        check("record", &value).unwrap_err();
        check("record", &json!({"record_version": 1})).unwrap_err();

        let baseline = Baseline::from_records("device", &[record]).unwrap();
        let mut value = serde_json::to_value(&baseline).unwrap();
        check("baseline", &value).unwrap();
        value["sessions"][0]["cases"][0]["threads"] = json!("two");
        check("baseline", &value).unwrap_err();
    }

    #[test]
    fn protocol_lines_validate_and_others_do_not() {
        let request = protocol::Envelope { id: 7, request: protocol::Request::Hello { protocol: (1, 0) } };
        check("protocol", &serde_json::to_value(request).unwrap()).unwrap();
        check("protocol", &json!({"id": 7, "ok": {}})).unwrap();
        check("protocol", &json!({"id": 7, "error": {"kind": "unsupported", "message": "no"}})).unwrap();
        check("protocol", &json!({"id": 7, "error": {"kind": "sulking", "message": "no"}})).unwrap_err();
        check("protocol", &json!({"ok": {}})).unwrap_err();
    }
}
