//! A gate of figures that repeat exactly: instructions and memory of one call, for machines whose clocks mean little.
//!
//! Nothing here is tested for significance: each side was counted twice, a case whose counts differ is dropped, and what is
//! left is compared with a threshold.

pub mod resources;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::resources::{ByArchitecture, ResourceFinding};
use super::exit::Exit;
use super::policy::Policy;
use crate::compare::Verdict;
use crate::compare::verdict::{change, percent};

/// Two counts of a side, or why there are none.
pub type Counts = Result<[Count; 2], String>;

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Count {
    /// Instructions.
    pub instructions: u64,
    /// High-water mark of the allocator above the tensors.
    pub extra_peak_bytes: Option<u64>,
}

/// A case that was counted on both sides.
#[derive(Clone, Debug, PartialEq)]
pub struct CountedCase {
    /// Its id.
    pub case_id: String,
    /// What is compared with.
    pub base: Counts,
    /// What is judged.
    pub head: Counts,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountedFinding {
    /// Its id.
    pub case_id: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// Base's first count.
    pub base: Option<Count>,
    /// Head's first count.
    pub head: Option<Count>,
}

/// What a gate of counts came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountedReport {
    /// `judged x of y by instructions, as avx2`.
    pub headline: String,
    /// The exit code, see [`Exit`].
    pub exit_code: u8,
    /// What led to it, most important first.
    pub causes: Vec<String>,
    /// The instruction set that was counted; nothing where no worker says.
    pub isa: Option<String>,
    /// The one that the machine would use.
    pub native_isa: String,
    /// Case by case.
    pub cases: Vec<CountedFinding>,
    /// CUDA kernels of both builds, where they were compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels_compared: Option<usize>,
    /// Those that take something else of a multiprocessor than they took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<ResourceFinding>,
}

impl CountedReport {
    /// The exit code as an outcome of a command.
    pub fn exit(&self) -> Exit {
        Exit::ALL.into_iter().find(|exit| *exit as u8 == self.exit_code).unwrap_or(Exit::Usage)
    }
}

/// Judges counts. What was counted on another instruction set than the machine's says nothing about its kernels. `kernels` are
/// base's and head's CUDA kernels, where they were compiled.
pub fn judge(
    cases: &[CountedCase],
    isa: Option<&str>,
    native_isa: &str,
    kernels: Option<[&ByArchitecture; 2]>,
    policy: &Policy,
) -> CountedReport {
    let compared = kernels.map(|[base, head]| resources::compare(base, head, policy.accept_removed));
    let (kernels, kernels_compared) = compared.map_or((Vec::new(), None), |(found, shared)| (found, Some(shared)));
    let is_native = isa.is_none_or(|isa| isa == native_isa);
    let findings: Vec<CountedFinding> = cases
        .iter()
        .map(|case| {
            let (verdict, reason) = match (is_native, isa) {
                (false, Some(isa)) => {
                    let reason = format!("counted as {isa}, which valgrind knows, not as the machine's {native_isa}");
                    (Verdict::NotComparable, reason)
                }
                _ => verdict(case, policy),
            };
            let first = |counts: &Counts| counts.as_ref().ok().map(|counts| counts[0]);
            let (base, head) = (first(&case.base), first(&case.head));
            CountedFinding { case_id: case.case_id.clone(), verdict, reason, base, head }
        })
        .collect();
    let count = |verdict: Verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let judged = findings.iter().filter(|finding| finding.verdict.is_decided()).count();
    let failed = cases.iter().filter(|case| case.base.is_err() && case.head.is_err()).count();
    let (regressed, incomparable) = (count(Verdict::Regressed), count(Verdict::NotComparable));
    let mut causes: Vec<(Exit, String)> = Vec::new();
    let mut add = |number: usize, exit: Exit, noun: &str, what: &str| {
        if number > 0 {
            causes.push((exit, format!("{number} {noun}{} {what}", if number == 1 { "" } else { "s" })));
        }
    };
    add(regressed, Exit::Regression, "case", "regressed");
    let worse = kernels.iter().filter(|kernel| kernel.verdict == Verdict::Regressed).count();
    add(worse, Exit::Regression, "CUDA kernel", "regressed");
    add(failed, Exit::Failed, "case", "could not be counted on either side");
    add(incomparable, Exit::NotComparable, "case", "not comparable");
    if (judged as f64) < policy.min_decided * findings.len() as f64 || findings.is_empty() {
        causes.push((Exit::Undecided, format!("{judged} of {} judged, fewer than `min_decided`", findings.len())));
    }
    let exit = causes.iter().fold(Exit::Pass, |exit, (cause, _)| exit.and(*cause));
    CountedReport {
        headline: format!("judged {judged} of {} by instructions, as {}", findings.len(), isa.unwrap_or("unknown")),
        exit_code: exit as u8,
        causes: causes.into_iter().map(|(_, cause)| cause).collect(),
        isa: isa.map(str::to_owned),
        native_isa: native_isa.to_owned(),
        cases: findings,
        kernels_compared,
        kernels,
    }
}

fn verdict(case: &CountedCase, policy: &Policy) -> (Verdict, String) {
    let (base, head) = match (&case.base, &case.head) {
        (Ok(base), Ok(head)) => (base, head),
        (Ok(_), Err(why)) => return (Verdict::Regressed, format!("counted on base, not on head: {why}")),
        (Err(why), _) => return (Verdict::Inconclusive, format!("not counted on base: {why}")),
    };
    for (side, counts) in [("base", base), ("head", head)] {
        if counts[0].instructions != counts[1].instructions {
            let [a, b] = counts.map(|count| count.instructions);
            return (Verdict::Inconclusive, format!("dropped: two counts of {side} differ, {a} and {b}"));
        }
    }
    let ratio = (head[0].instructions as f64 / base[0].instructions.max(1) as f64).ln();
    if let (Some(before), Some(after)) = (base[0].extra_peak_bytes, head[0].extra_peak_bytes) {
        let slack = policy.memory_slack_bytes.max((before as f64 * policy.memory_share) as u64);
        if after > before.saturating_add(slack) {
            return (Verdict::Regressed, format!("memory: {} bytes more", after - before));
        }
    }
    let floor = policy.instructions_floor;
    let seen = format!("{} instructions to {}", base[0].instructions, head[0].instructions);
    match ratio {
        ratio if ratio > floor.ln_1p() => (Verdict::Regressed, format!("{seen}: as if {}", change(ratio))),
        ratio if ratio < -floor.ln_1p() => (Verdict::Improved, format!("{seen}: as if {}", change(ratio))),
        _ => (Verdict::Unchanged, format!("{seen}, within {}", percent(floor))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: [u64; 2], bytes: u64) -> Counts {
        Ok(instructions.map(|instructions| Count { instructions, extra_peak_bytes: Some(bytes) }))
    }

    fn judged(base: Counts, head: Counts, isa: Option<&str>) -> CountedReport {
        let case = CountedCase { case_id: "cpu/a".into(), base, head };
        judge(&[case], isa, "avx2", None, &Policy::default())
    }

    #[test]
    fn counts_are_compared_with_a_threshold() {
        let base = || counts([1000, 1000], 100);
        for (head, verdict, exit) in [
            (counts([1009, 1009], 100), Verdict::Unchanged, Exit::Pass),
            (counts([1011, 1011], 100), Verdict::Regressed, Exit::Regression),
            (counts([900, 900], 100), Verdict::Improved, Exit::Pass),
            (counts([1000, 1001], 100), Verdict::Inconclusive, Exit::Undecided),
            (counts([1000, 1000], 1 << 20), Verdict::Regressed, Exit::Regression),
            (Err("crashed".into()), Verdict::Regressed, Exit::Regression),
        ] {
            let report = judged(base(), head, Some("avx2"));
            assert_eq!((report.cases[0].verdict, report.exit()), (verdict, exit), "{report:?}");
        }
        assert_eq!(judged(Err("a".into()), Err("b".into()), None).exit(), Exit::Failed);
        assert_eq!(judged(Err("a".into()), base(), None).exit(), Exit::Undecided);
    }

    #[test]
    fn a_kernel_that_spills_fails_the_gate() {
        let compiled = |registers: u32| -> ByArchitecture {
            let text = format!(
                r#"{{"sm_80": [{{"module": "m", "entry": "e", "registers": {registers}, "spill_bytes": 0, "stack_bytes": 0,
                    "static_shared_bytes": 0}}]}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let same = || counts([10, 10], 1);
        let case = [CountedCase { case_id: "cpu/a".into(), base: same(), head: same() }];
        let judged = |head: u32| {
            let (base, head) = (compiled(32), compiled(head));
            judge(&case, None, "avx2", Some([&base, &head]), &Policy::default())
        };
        assert_eq!((judged(32).exit(), judged(32).kernels_compared), (Exit::Pass, Some(1)));
        assert_eq!(
            (judged(33).exit(), judged(33).causes),
            (Exit::Regression, vec!["1 CUDA kernel regressed".to_owned()])
        );
    }

    #[test]
    fn another_instruction_set_is_not_comparable() {
        let same = || counts([10, 10], 1);
        let report = judged(same(), same(), Some("portable"));
        assert_eq!((report.cases[0].verdict, report.exit()), (Verdict::NotComparable, Exit::NotComparable));
        assert!(report.cases[0].reason.contains("portable") && report.cases[0].reason.contains("avx2"));
        assert_eq!(judged(same(), same(), None).headline, "judged 1 of 1 by instructions, as unknown");
    }
}
