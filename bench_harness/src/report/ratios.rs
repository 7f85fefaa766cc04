//! How fast kernels are beside their peers: the same problem, threads and mode in one record, in another provider.

use std::str::FromStr;

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::case_names::group_names;
use super::{Style, Tone, printable, units, wrap};
use crate::case::{Case, CaseKey};
use crate::metric::latency::LatencyMedian;
use crate::metric::{Estimate, Metric};
use crate::record::Record;

/// A kernel and its peers on one problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The kernel's case.
    pub key: CaseKey,
    /// The matrix that it came from.
    pub matrix: String,
    /// Its median.
    pub latency_ns_median: f64,
    /// Everybody else who computed the problem, in the record's order.
    pub peers: Vec<Peer>,
}

/// Another provider's kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Peer {
    /// `provider/kernel`.
    pub name: String,
    /// Its median.
    pub latency_ns_median: f64,
    /// Its time over the kernel's: above 1 the kernel is faster.
    pub time_ratio: f64,
    /// The least that both intervals allow.
    pub time_ratio_low: f64,
    /// The most that they allow.
    pub time_ratio_high: f64,
}

impl Ratio {
    /// The fastest peer.
    pub fn best_peer(&self) -> Option<&Peer> {
        self.peers.iter().min_by(|a, b| a.time_ratio.total_cmp(&b.time_ratio))
    }
}

/// Every measured kernel of a provider, with those of other providers on the same problem.
pub fn ratios(record: &Record, provider: &str) -> Vec<Ratio> {
    let measured: Vec<(Case, &CaseKey, &str, Estimate)> = record
        .cases
        .iter()
        .filter_map(|case| {
            let latency = LatencyMedian.value(case, record)?;
            Some((Case::from_str(&case.key.case_id).ok()?, &case.key, case.matrix.as_str(), latency))
        })
        .collect();
    measured
        .iter()
        .filter(|(case, ..)| case.provider == provider)
        .map(|(own, key, matrix, latency)| {
            // Threads of the CPU say nothing about kernels on a GPU.
            let is_peer = |(case, other, ..): &&(Case, &CaseKey, &str, Estimate)| {
                case.provider != provider
                    && case.problem == own.problem
                    && other.mode == key.mode
                    && (other.threads == key.threads || key.threads == 0)
            };
            let peers = measured
                .iter()
                .filter(is_peer)
                .map(|(case, _, _, theirs)| Peer {
                    name: format!("{}/{}", case.provider, case.kernel),
                    latency_ns_median: theirs.value,
                    time_ratio: theirs.value / latency.value,
                    time_ratio_low: theirs.low / latency.high,
                    time_ratio_high: theirs.high / latency.low,
                })
                .collect();
            Ratio { key: (*key).clone(), matrix: (*matrix).to_owned(), latency_ns_median: latency.value, peers }
        })
        .collect()
}

/// The table of `attnbench ratios`: a matrix at a time, a row a case, a column a peer.
pub fn table(ratios: &[Ratio], style: Style) -> String {
    let mut out = vec!["Time of each peer over the kernel's own: above 1, the kernel is faster.".to_owned()];
    for group in ratios.chunk_by(|a, b| a.matrix == b.matrix) {
        let mut names: Vec<&str> = Vec::new();
        for peer in group.iter().flat_map(|ratio| &ratio.peers) {
            if !names.contains(&peer.name.as_str()) {
                names.push(&peer.name);
            }
        }
        if names.is_empty() {
            continue;
        }
        let short = group_names(&group.iter().map(|ratio| &ratio.key).collect::<Vec<_>>());
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
        let heads = ["case", "latency"].into_iter().chain(names.iter().copied()).chain(["best peer"]);
        // Two short lines instead of one that a narrow terminal would break anywhere.
        table.set_header(heads.map(|head| printable(head).replace('/', "/\n")));
        for (ratio, name) in group.iter().zip(short.names) {
            let shown = |peer: Option<&Peer>| peer.map_or("-".to_owned(), |peer| times(peer.time_ratio));
            let of = |name: &&str| ratio.peers.iter().find(|peer| peer.name == **name);
            let cells = [printable(&name), units::nanoseconds(ratio.latency_ns_median)]
                .into_iter()
                .chain(names.iter().map(|name| shown(of(name))))
                .chain([shown(ratio.best_peer())]);
            let aligned = cells.enumerate().map(|(column, text)| {
                let alignment = if column == 0 { CellAlignment::Left } else { CellAlignment::Right };
                Cell::new(text).set_alignment(alignment)
            });
            table.add_row(aligned.collect::<Vec<_>>());
        }
        out.push(String::new());
        let heading = printable(&format!("{}: {}", group[0].matrix, short.heading));
        out.extend(wrap(&heading, style.width, &['/', ' ']).iter().map(|line| style.bold(line)));
        out.extend(table.lines().map(|line| line.trim_end().to_owned()));
    }
    let overlapping = ratios
        .iter()
        .filter_map(Ratio::best_peer)
        .filter(|peer| peer.time_ratio_low <= 1.0 && 1.0 <= peer.time_ratio_high)
        .count();
    if overlapping > 0 {
        let note = format!("{overlapping} of the best peers' intervals allow that neither is faster.");
        out.extend([String::new(), style.paint(Tone::Doubtful, &note)]);
    }
    out.join("\n") + "\n"
}

/// `1.93x`, `12.4x`, `310x`.
fn times(ratio: f64) -> String {
    format!("{}x", units::three_digits(ratio))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CaseResult, Disposition, sample};

    /// A case of another provider, beside `sample::measured`.
    fn foreign(name: &str, keys: usize, ns: f64) -> CaseResult {
        let mut case = sample::measured("flash", keys, ns);
        case.key.case_id = case.key.case_id.replacen("cpu/flash", name, 1);
        case
    }

    fn record() -> Record {
        let mut one_thread = foreign("torch/sdpa", 512, 1.0);
        one_thread.key.threads = 1;
        let mut wrong = foreign("torch/wrong", 512, 1.0);
        wrong.disposition = Disposition::Incorrect;
        Record {
            cases: vec![
                sample::measured("flash", 512, 1000.0),
                sample::measured("naive", 512, 5000.0),
                foreign("torch/sdpa", 512, 3000.0),
                foreign("onnxruntime/gqa", 512, 2000.0),
                sample::measured("flash", 1024, 4000.0),
                foreign("torch/sdpa", 1024, 2000.0),
                sample::measured("flash", 2048, 8000.0),
                one_thread,
                wrong,
            ],
            ..sample::record()
        }
    }

    #[test]
    fn peers_computed_the_same_problem_elsewhere() {
        let ratios = ratios(&record(), "cpu");
        let said: Vec<(Vec<&str>, Option<&str>)> = ratios
            .iter()
            .map(|ratio| {
                let names = ratio.peers.iter().map(|peer| peer.name.as_str()).collect();
                (names, ratio.best_peer().map(|peer| peer.name.as_str()))
            })
            .collect();
        let both = vec!["torch/sdpa", "onnxruntime/gqa"];
        assert_eq!(
            said,
            [
                (both.clone(), Some("onnxruntime/gqa")),
                (both, Some("onnxruntime/gqa")),
                (vec!["torch/sdpa"], Some("torch/sdpa")),
                (vec![], None)
            ],
            "other threads and wrong answers are no peers"
        );
        let best = ratios[0].best_peer().expect("one");
        assert!((best.time_ratio - 2.0).abs() < 1e-9);
        assert!(best.time_ratio_low <= best.time_ratio && best.time_ratio <= best.time_ratio_high);
        assert!((ratios[2].peers[0].time_ratio - 0.5).abs() < 1e-9);
    }

    #[test]
    fn any_provider_may_be_the_one() {
        let ratios = ratios(&record(), "torch");
        assert_eq!(ratios.len(), 3);
        assert_eq!(ratios[0].peers.len(), 3, "two of ours and ONNX Runtime's");
    }

    #[test]
    fn tables() {
        insta::assert_snapshot!(table(&ratios(&record(), "cpu"), Style { width: 100, colour: false }));
    }
}
