//! The worker's end of the protocol: a loop over lines that cannot be crashed by what it reads.

use std::fs;
use std::io::{BufRead, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::protocol::{
    Answer, Done, Envelope, ErrorKind, KernelList, MAX_LINE_BYTES, PROTOCOL_VERSION, Request, WorkerError,
};
use super::provider::{PreparedCase, Provider};

/// Serves requests until `shutdown` or the end of input.
pub fn serve(provider: &mut dyn Provider, mut input: impl BufRead, mut output: impl Write) -> std::io::Result<()> {
    let mut case: Option<Box<dyn PreparedCase>> = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = input.by_ref().take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let (id, parsed) = parse(&line);
        let is_shutdown = matches!(parsed, Ok(Request::Shutdown));
        let result = parsed.and_then(|request| {
            catch_unwind(AssertUnwindSafe(|| handle(provider, &mut case, request))).unwrap_or_else(|panic| {
                // The case may be half changed: it is not used again.
                case = None;
                Err(WorkerError::new(ErrorKind::KernelError, format!("panicked: {}", panic_text(&*panic))))
            })
        });
        let answer = match result {
            Ok(value) => Answer { id, ok: Some(value), error: None },
            Err(error) => Answer { id, ok: None, error: Some(error) },
        };
        serde_json::to_writer(&mut output, &answer)?;
        output.write_all(b"\n")?;
        output.flush()?;
        if is_shutdown || !provider.is_usable() {
            return Ok(());
        }
    }
}

/// The number of a request and the request; a line that is no request still gets an answer.
fn parse(line: &[u8]) -> (u64, Result<Request, WorkerError>) {
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return (0, Err(WorkerError::invalid(format!("request is not JSON: {error}")))),
    };
    let id = value.get("id").and_then(Value::as_u64).unwrap_or(0);
    const KNOWN: [&str; 10] =
        ["hello", "kernels", "supports", "prepare", "measure", "outputs", "memory", "release", "control", "shutdown"];
    match value.get("request").and_then(Value::as_str) {
        Some(name) if !KNOWN.contains(&name) => {
            let message = format!("unknown request `{name}`; this worker answers {}", KNOWN.join(", "));
            return (id, Err(WorkerError::new(ErrorKind::Unsupported, message)));
        }
        _ => {}
    }
    let request = serde_json::from_value::<Envelope>(value)
        .map(|envelope| envelope.request)
        .map_err(|error| WorkerError::invalid(format!("request does not parse: {error}")));
    (id, request)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

fn handle(
    provider: &mut dyn Provider,
    case: &mut Option<Box<dyn PreparedCase>>,
    request: Request,
) -> Result<Value, WorkerError> {
    fn current(case: &mut Option<Box<dyn PreparedCase>>) -> Result<&mut Box<dyn PreparedCase>, WorkerError> {
        case.as_mut().ok_or_else(|| WorkerError::invalid("no case is prepared"))
    }
    match request {
        Request::Hello { protocol } if protocol.0 != PROTOCOL_VERSION.0 => Err(WorkerError::new(
            ErrorKind::Unsupported,
            format!("protocol {}.{} is asked for, this worker speaks {}.x", protocol.0, protocol.1, PROTOCOL_VERSION.0),
        )),
        Request::Hello { .. } => answer(provider.hello()?),
        Request::Kernels => answer(KernelList { kernels: provider.kernels() }),
        Request::Supports(case) => provider.supports(&case).and_then(|()| answer(Done {})),
        Request::Prepare(prepare) => {
            // The earlier case's memory is given back before the new one's is taken.
            *case = None;
            let (ready, prepared) = provider.prepare(&prepare)?;
            *case = Some(ready);
            answer(prepared)
        }
        Request::Measure(measure) => answer(current(case)?.measure(&measure)?),
        Request::Outputs { rows, path } => {
            let (bytes, written) = current(case)?.outputs(&rows)?;
            fs::write(Path::new(&path), bytes).map_err(|error| {
                WorkerError::new(ErrorKind::Internal, format!("writing outputs to `{path}`: {error}"))
            })?;
            answer(written)
        }
        Request::Memory => answer(current(case)?.memory()),
        Request::Release => {
            *case = None;
            answer(Done {})
        }
        Request::Control(control) => answer(provider.control(&control)?),
        Request::Shutdown => {
            *case = None;
            answer(Done {})
        }
    }
}

fn answer<T: Serialize>(value: T) -> Result<Value, WorkerError> {
    serde_json::to_value(value).map_err(|error| WorkerError::new(ErrorKind::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::cpu::CpuProvider;

    fn talk(lines: &str) -> Vec<Value> {
        let mut output = Vec::new();
        serve(&mut CpuProvider::built_in(), lines.as_bytes(), &mut output).expect("memory does not fail");
        String::from_utf8(output)
            .expect("answers are text")
            .lines()
            .map(|line| serde_json::from_str(line).expect("answers are JSON"))
            .collect()
    }

    #[test]
    fn every_line_gets_an_answer_with_its_number() {
        let answers = talk(
            "{\"id\":1,\"request\":\"hello\",\"protocol\":[1,9],\"more\":true}\nrubbish\n\n\
             {\"id\":3,\"request\":\"dance\"}\n{\"id\":4,\"request\":\"measure\"}\n{\"id\":5,\"request\":\"memory\"}\n\
             {\"id\":6,\"request\":\"hello\",\"protocol\":[2,0]}\n{\"id\":7,\"request\":\"shutdown\"}\n{\"id\":8}\n",
        );
        let ids: Vec<u64> = answers.iter().map(|answer| answer["id"].as_u64().expect("a number")).collect();
        assert_eq!(ids, [1, 0, 3, 4, 5, 6, 7], "and nothing is read after shutdown");
        assert_eq!(answers[0]["ok"]["provider"], "cpu");
        assert_eq!(answers[1]["error"]["kind"], "invalid");
        assert_eq!(answers[2]["error"]["kind"], "unsupported");
        assert!(answers[2]["error"]["message"].as_str().is_some_and(|text| text.contains("`dance`")));
        assert_eq!(answers[3]["error"]["kind"], "invalid");
        assert_eq!(answers[4]["error"]["message"], "no case is prepared");
        assert_eq!(answers[5]["error"]["kind"], "unsupported");
        assert!(answers[6]["ok"].is_object());
    }
}
