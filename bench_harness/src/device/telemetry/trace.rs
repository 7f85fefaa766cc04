//! Recorded traces: what GPUs said, line by line, to be said again on a machine that has none.
//!
//! A trace is a text of JSON lines (`attnbench schema nvml_trace`): a `header`, a `gpu` for each GPU, then `reading`s in the
//! order in which they are given out. Whoever asks a GPU gets its next reading; after the last one, that one again. A
//! query that was refused is in `refused` of its reading, so that missing permissions, old drivers and GPUs that fall off
//! the bus are replayed like everything else.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Gpu, GpuState, Moment, NoTelemetry, Source};
use crate::record::telemetry::Reading;

/// The version of the format that this program writes, and the newest that it reads.
pub const TRACE_VERSION: u32 = 1;

/// Larger traces are taken for a mistake.
const MAX_BYTES: u64 = 256 << 20;

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum TraceLine {
    /// The first one.
    Header {
        /// [`TRACE_VERSION`] of the writer.
        trace_version: u32,
        /// Where it comes from: a library and its version, or who wrote it by hand after what.
        origin: String,
    },
    /// A GPU, before its readings.
    Gpu(GpuState),
    /// What a GPU said.
    Reading {
        /// `index` of the GPU.
        gpu: u32,
        /// What.
        #[serde(flatten)]
        reading: Reading,
    },
}

/// Why a trace is not used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("reading GPU trace `{name}`: {cause}")]
    Read {
        /// The file.
        name: String,
        /// What the system says.
        cause: io::Error,
    },
    /// A line makes no sense.
    #[error("reading GPU trace `{name}`, line {line}: {problem}")]
    Line {
        /// The file.
        name: String,
        /// From 1.
        line: usize,
        /// In words.
        problem: String,
    },
}

/// A trace that is ready to be replayed.
#[derive(Debug)]
pub struct Trace {
    name: String,
    origin: String,
    gpus: Vec<Arc<Replay>>,
}

/// One GPU of a trace, and how far its readings were given out.
#[derive(Debug)]
struct Replay {
    state: GpuState,
    readings: Vec<Reading>,
    next: Mutex<usize>,
}

impl Trace {
    /// Reads a trace from a file.
    ///
    /// # Errors
    /// [`TraceError`]: no such file, too large, no text, or a line that makes no sense.
    pub fn load(path: &Path) -> Result<Trace, TraceError> {
        let name = path.display().to_string();
        let failed = |cause: io::Error| TraceError::Read { name: name.clone(), cause };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if bytes as u64 > MAX_BYTES {
            let message = format!("it is larger than the limit of {MAX_BYTES} bytes; record fewer seconds");
            return Err(failed(io::Error::other(message)));
        }
        Trace::parse(&name, &text)
    }

    /// Reads a trace from its text.
    ///
    /// # Errors
    /// [`TraceError::Line`]: the first line that makes no sense.
    pub fn parse(name: &str, text: &str) -> Result<Trace, TraceError> {
        let wrong = |line: usize, problem: String| TraceError::Line { name: name.to_owned(), line: line + 1, problem };
        let mut origin = None;
        let mut gpus: Vec<(GpuState, Vec<Reading>)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            match (parse_line(line).map_err(|problem| wrong(number, problem))?, &origin) {
                (TraceLine::Header { trace_version, origin: from }, None) => {
                    if trace_version > TRACE_VERSION {
                        let problem =
                            format!("version {trace_version} is newer than {TRACE_VERSION}; update attnbench");
                        return Err(wrong(number, problem));
                    }
                    origin = Some(from);
                }
                (TraceLine::Header { .. }, Some(_)) => return Err(wrong(number, "a second header".to_owned())),
                (_, None) => return Err(wrong(number, "the first line is not the header".to_owned())),
                (TraceLine::Gpu(state), _) => {
                    if gpus.iter().any(|(known, _)| known.index == state.index) {
                        return Err(wrong(number, format!("a second GPU {}", state.index)));
                    }
                    gpus.push((state, Vec::new()));
                }
                (TraceLine::Reading { gpu, reading }, _) => match gpus.iter_mut().find(|(it, _)| it.index == gpu) {
                    Some((_, readings)) => readings.push(reading),
                    None => {
                        return Err(wrong(number, format!("a reading of GPU {gpu}, which no earlier line describes")));
                    }
                },
            }
        }
        let lines = text.lines().count();
        let origin = origin.ok_or_else(|| wrong(lines, "the trace is empty: it lacks its header".to_owned()))?;
        if let Some((state, _)) = gpus.iter().find(|(_, readings)| readings.is_empty()) {
            return Err(wrong(lines, format!("the trace ends without a reading of GPU {}", state.index)));
        }
        let replay = |(state, readings)| Arc::new(Replay { state, readings, next: Mutex::new(0) });
        Ok(Trace { name: name.to_owned(), origin, gpus: gpus.into_iter().map(replay).collect() })
    }
}

/// Reads a line, and refuses fields that nobody would read: a misspelt one would be a query that was never answered.
fn parse_line(line: &str) -> Result<TraceLine, String> {
    let written: Value = serde_json::from_str(line).map_err(|error| format!("this is not JSON: {error}"))?;
    let parsed: TraceLine = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
    let understood = serde_json::to_value(&parsed).map_err(|error| error.to_string())?;
    let unknown = written.as_object().into_iter().flatten().find(|(name, value)| {
        // What has its default is left out when written, and is no misspelling.
        let is_default = value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty);
        !is_default && understood.get(name.as_str()).is_none()
    });
    match unknown {
        Some((name, _)) => Err(format!("unknown field `{name}`; `attnbench schema nvml_trace` has them all")),
        None => Ok(parsed),
    }
}

impl Source for Trace {
    fn name(&self) -> String {
        format!("recorded trace `{}` ({})", self.name, self.origin)
    }

    fn gpus(&self) -> Result<Vec<Arc<dyn Gpu>>, NoTelemetry> {
        Ok(self.gpus.iter().map(|gpu| Arc::clone(gpu) as Arc<dyn Gpu>).collect())
    }

    fn gpu(&self, uuid: &str) -> Result<Arc<dyn Gpu>, NoTelemetry> {
        let found = self.gpus.iter().find(|gpu| gpu.state.uuid.as_deref() == Some(uuid));
        found.map(|gpu| Arc::clone(gpu) as Arc<dyn Gpu>).ok_or_else(|| NoTelemetry::NoGpu {
            origin: self.name(),
            uuid: uuid.to_owned(),
            reason: "no line describes it".to_owned(),
        })
    }

    fn period(&self) -> Option<Duration> {
        None
    }
}

impl Gpu for Replay {
    fn state(&self) -> GpuState {
        self.state.clone()
    }

    fn read(&self, _pid: u32, _moment: Moment) -> Reading {
        let mut next = self.next.lock().expect("no thread panics while it holds it");
        let reading = self.readings[*next].clone();
        *next = (*next + 1).min(self.readings.len() - 1);
        reading
    }
}

/// Asks every GPU of a source for a while and writes what they say: a trace. `pause` is the time between two readings.
/// Activity is counted from one reading to the next.
///
/// # Errors
/// Those of the writer; and no GPUs are one, since a trace of none can replay nothing.
pub fn record(
    source: &dyn Source,
    pid: u32,
    mut out: impl Write,
    total: Duration,
    pause: Duration,
) -> io::Result<usize> {
    let gpus = source.gpus().map_err(io::Error::other)?;
    if gpus.is_empty() {
        return Err(io::Error::other(format!("{} lists no GPU", source.name())));
    }
    let mut write = |line: &TraceLine| {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")
    };
    write(&TraceLine::Header { trace_version: TRACE_VERSION, origin: format!("recorded from {}", source.name()) })?;
    let states: Vec<GpuState> = gpus.iter().map(|gpu| gpu.state()).collect();
    for state in &states {
        write(&TraceLine::Gpu(state.clone()))?;
    }
    let started = Instant::now();
    let mut count = 0;
    loop {
        for (gpu, state) in gpus.iter().zip(&states) {
            let moment = if count == 0 { Moment::During } else { Moment::End };
            write(&TraceLine::Reading { gpu: state.index, reading: gpu.read(pid, moment) })?;
            // The next reading's activity begins here. A source that has its own times is not asked twice.
            if source.period().is_some() {
                gpu.read(pid, Moment::Begin);
            }
        }
        count += 1;
        if started.elapsed() >= total {
            return Ok(count);
        }
        std::thread::sleep(pause.min(total.saturating_sub(started.elapsed())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::telemetry::Refusal;

    const HEADER: &str = "{\"line\":\"header\",\"trace_version\":1,\"origin\":\"a test\"}\n";
    const GPU: &str = "{\"line\":\"gpu\",\"index\":3,\"name\":\"G\",\"uuid\":\"GPU-3\"}\n";

    #[test]
    fn readings_are_given_out_in_order_and_the_last_one_for_ever() {
        let text = format!(
            "{HEADER}{GPU}\n{{\"line\":\"reading\",\"gpu\":3,\"sm_clock_mhz\":1,\"refused\":{{}}}}\n\
             {{\"line\":\"reading\",\"gpu\":3,\"refused\":{{\"sm_clock_mhz\":{{\"failed\":\"x\"}}}}}}\n"
        );
        let trace = Trace::parse("t", &text).unwrap();
        assert_eq!(trace.name(), "recorded trace `t` (a test)");
        let gpu = trace.gpu("GPU-3").unwrap();
        assert_eq!(gpu.read(1, Moment::Begin).sm_clock_mhz, Some(1));
        for _ in 0..3 {
            assert_eq!(gpu.read(1, Moment::End).refused["sm_clock_mhz"], Refusal::Failed("x".into()));
        }
        assert!(trace.gpu("GPU-4").is_err());
    }

    #[test]
    fn bad_lines_are_named() {
        let with = |line: &str| format!("{HEADER}{GPU}{line}");
        for (text, expected) in [
            (String::new(), "line 1: the trace is empty"),
            (GPU.to_owned(), "line 1: the first line is not the header"),
            (HEADER.replace(":1,", ":9,"), "line 1: version 9 is newer than 1"),
            (with(HEADER), "line 3: a second header"),
            (with(GPU), "line 3: a second GPU 3"),
            (with(""), "line 3: the trace ends without a reading of GPU 3"),
            (with("{\"line\":\"reading\",\"gpu\":4}"), "line 3: a reading of GPU 4, which no earlier line describes"),
            (with("{\"line\":\"reading\",\"gpu\":3,\"sm_clok_mhz\":1}"), "line 3: unknown field `sm_clok_mhz`"),
            (with("{\"line\":\"reading\",\"gpu\":3,\"sm_clock_mhz\":-1}"), "line 3: invalid value"),
            (with("{\"line\":\"reading\",\"gpu\":3,\"refused\":{\"x\":\"sulking\"}}"), "line 3: unknown variant"),
            (with("{\"line\":\"song\"}"), "line 3: unknown variant `song`"),
            (with("{\"line\":"), "line 3: this is not JSON"),
        ] {
            let error = Trace::parse("t", &text).expect_err(&text).to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.starts_with("reading GPU trace `t`"), "{error}");
        }
    }

    #[test]
    fn what_is_recorded_is_replayed() {
        let text = format!(
            "{HEADER}{GPU}{{\"line\":\"reading\",\"gpu\":3,\"at_ns\":5,\"throttle_reasons\":4}}\n\
             {{\"line\":\"reading\",\"gpu\":3,\"at_ns\":9,\"refused\":{{\"power_milliwatts\":\"gpu_lost\"}}}}\n"
        );
        let mut copy = Vec::new();
        let trace = Trace::parse("t", &text).unwrap();
        let first = record(&trace, 1, &mut copy, Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(first, 1);
        let copy = String::from_utf8(copy).unwrap();
        let copied = Trace::parse("copy", &copy).unwrap();
        assert!(copied.name().contains("recorded from recorded trace `t`"));
        assert_eq!(
            copied.gpu("GPU-3").unwrap().read(1, Moment::During),
            Reading { at_ns: 5, throttle_reasons: Some(4), ..Reading::default() }
        );
        // A source without GPUs makes no trace.
        let none = Trace::parse("none", HEADER).unwrap();
        let error = record(&none, 1, Vec::new(), Duration::ZERO, Duration::ZERO).expect_err("refused");
        assert!(error.to_string().contains("lists no GPU"));
    }
}
