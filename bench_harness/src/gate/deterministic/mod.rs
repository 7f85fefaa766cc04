//! A gate of figures that repeat exactly: instructions, memory and counted work of one call, for machines whose clocks mean
//! little.
//!
//! Nothing here is tested for significance: each side was counted twice, a case whose counts differ is dropped, and what is
//! left is compared with a threshold. What comes out is a gate's report as any other, so that every format shows it.

pub mod resources;

use attn_kernels::work::Work;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::resources::{ByArchitecture, ResourceFinding};
use super::acceptance::{self, Acceptance};
use super::exit::Exit;
use super::outcome::{GateReport, removed};
use super::policy::Policy;
use crate::case::{CaseKey, Mode};
use crate::compare::verdict::{change, percent};
use crate::compare::{CaseComparison, Comparison, Finding, MetricComparison, Side, Verdict};
use crate::metric::Estimate;
use crate::record::Disposition;

/// The metric of instructions.
pub const INSTRUCTIONS: &str = "instructions";
/// The metric of memory, as records have it.
const MEMORY: &str = "extra_peak_bytes";

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
    /// What each side says that a call has to do, where it says so.
    pub work: [Option<Work>; 2],
}

/// What was counted, and by what it is judged.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    /// Case by case.
    pub cases: &'a [CountedCase],
    /// The instruction set that was counted; nothing where no worker says.
    pub isa: Option<&'a str>,
    /// The one that the machine would use.
    pub native_isa: &'a str,
    /// Base's and head's CUDA kernels, where they were compiled.
    pub kernels: Option<[&'a ByArchitecture; 2]>,
    /// Cases of base's suite that head's no longer has.
    pub removed: &'a [CaseKey],
    /// Acceptances that count now.
    pub acceptances: &'a [Acceptance],
    /// Where both sides come from.
    pub sides: [&'a Side; 2],
    /// Whether every inconclusive case counts.
    pub strict: bool,
}

/// What a gate of counts came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountedReport {
    /// What every gate has; its headline is `judged x of y by instructions, as avx2`.
    #[serde(flatten)]
    pub gate: GateReport,
    /// The instruction set that was counted; nothing where no worker says.
    pub isa: Option<String>,
    /// The one that the machine would use.
    pub native_isa: String,
    /// CUDA kernels of both builds, where they were compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels_compared: Option<usize>,
    /// Those that take something else of a multiprocessor than they took.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<ResourceFinding>,
}

/// Judges counts. What was counted on another instruction set than the machine's says nothing about its kernels.
pub fn judge(counted: Counted<'_>, policy: &Policy) -> CountedReport {
    let Counted { cases, isa, native_isa, .. } = counted;
    let compared = counted.kernels.map(|[base, head]| resources::compare(base, head, policy.accept_removed));
    let (kernels, kernels_compared) = compared.map_or((Vec::new(), None), |(found, shared)| (found, Some(shared)));
    let foreign = isa
        .filter(|isa| *isa != native_isa)
        .map(|isa| format!("counted as {isa}, which valgrind knows, not as the machine's {native_isa}"));
    let [base, head] = counted.sides.map(Clone::clone);
    let mut comparison = Comparison { base, head, ..Comparison::default() };
    comparison.cases = cases.iter().map(|case| compare(case, foreign.as_deref(), policy)).collect();
    comparison.cases.extend(counted.removed.iter().map(|key| removed(key, policy)));
    let differing = cases.iter().filter(|case| matches!(case.work, [Some(base), Some(head)] if base != head)).count();
    if differing > 0 {
        comparison
            .notes
            .push(format!("the exact work of {} is counted differently on the two sides", cases_text(differing)));
    }
    let name = |kernel: &ResourceFinding| format!("{} {} of {}", kernel.architecture, kernel.entry, kernel.module);
    comparison.notes.extend(
        kernels
            .iter()
            .map(|kernel| format!("CUDA kernel {}: {}: {}", kernel.verdict.name(), name(kernel), kernel.reason)),
    );
    let accepted = acceptance::apply(&mut comparison, counted.acceptances);

    let cases = &comparison.cases;
    let count = |verdict: Verdict| cases.iter().filter(|case| case.verdict == verdict).count();
    let judged = cases.iter().filter(|case| case.verdict.is_decided()).count();
    let failed = cases.iter().filter(|case| case.failed_on_both()).count();
    let mut causes: Vec<(Exit, String)> = Vec::new();
    let mut add = |number: usize, exit: Exit, noun: &str, what: &str| {
        if number > 0 {
            causes.push((exit, format!("{number} {noun}{} {what}", if number == 1 { "" } else { "s" })));
        }
    };
    add(count(Verdict::Regressed), Exit::Regression, "case", "regressed");
    let worse = kernels.iter().filter(|kernel| kernel.verdict == Verdict::Regressed).count();
    add(worse, Exit::Regression, "CUDA kernel", "regressed");
    add(failed, Exit::Failed, "case", "could not be counted on either side");
    add(count(Verdict::NotComparable), Exit::NotComparable, "case", "not comparable");
    if (judged as f64) < policy.min_decided * cases.len() as f64 || cases.is_empty() {
        causes.push((Exit::Undecided, format!("{judged} of {} judged, fewer than `min_decided`", cases.len())));
    } else if counted.strict && count(Verdict::Inconclusive) > 0 {
        let inconclusive = cases_text(count(Verdict::Inconclusive));
        causes.push((Exit::Undecided, format!("{inconclusive} inconclusive, which --strict does not accept")));
    }
    let exit = causes.iter().fold(Exit::Pass, |exit, (cause, _)| exit.and(*cause));
    let gate = GateReport {
        headline: format!("judged {judged} of {} by instructions, as {}", cases.len(), isa.unwrap_or("unknown")),
        exit_code: exit as u8,
        causes: causes.into_iter().map(|(_, cause)| cause).collect(),
        judged,
        eligible: cases.len(),
        median_mde: None,
        accepted,
        families: Vec::new(),
        comparison,
        command: Vec::new(),
    };
    CountedReport { gate, isa: isa.map(str::to_owned), native_isa: native_isa.to_owned(), kernels_compared, kernels }
}

fn cases_text(count: usize) -> String {
    format!("{count} case{}", if count == 1 { "" } else { "s" })
}

/// One case, metric by metric. Modes and threads of a case are one call, of one thread.
fn compare(case: &CountedCase, foreign: Option<&str>, policy: &Policy) -> CaseComparison {
    let disposition = |counts: &Counts| Some(if counts.is_ok() { Disposition::Measured } else { Disposition::Crashed });
    let mut compared = CaseComparison {
        key: CaseKey { case_id: case.case_id.clone(), mode: Mode::Hot, threads: 1 },
        base: disposition(&case.base),
        head: disposition(&case.head),
        verdict: Verdict::NotComparable,
        reason: foreign.unwrap_or_default().to_owned(),
        metrics: Vec::new(),
    };
    if foreign.is_some() {
        return compared;
    }
    match (&case.base, &case.head) {
        (Ok(base), Ok(head)) => {
            compared.metrics.push(instructions(base, head, policy));
            compared.metrics.extend(memory(base[0], head[0], policy));
            compared.metrics.extend(work(case.work));
            compared.conclude();
        }
        (Ok(_), Err(why)) => {
            compared.verdict = Verdict::Regressed;
            compared.reason = format!("counted on base, not on head: {why}");
        }
        (Err(why), _) => {
            compared.verdict = Verdict::Inconclusive;
            compared.reason = format!("not counted on base: {why}");
        }
    }
    compared
}

fn metric(name: &str, base: u64, head: u64, verdict: Verdict, reason: String) -> MetricComparison {
    let ratio = (base > 0).then(|| Estimate::exact(head as f64 / base as f64));
    let finding = Finding { ratio, ..Finding::bare(verdict, reason) };
    MetricComparison { metric: name.to_owned(), base: Some(base as f64), head: Some(head as f64), finding }
}

fn instructions(base: &[Count; 2], head: &[Count; 2], policy: &Policy) -> MetricComparison {
    let (before, after) = (base[0].instructions, head[0].instructions);
    let of = |verdict, reason| metric(INSTRUCTIONS, before, after, verdict, reason);
    for (side, counts) in [("base", base), ("head", head)] {
        let [a, b] = counts.map(|count| count.instructions);
        if a != b {
            return of(Verdict::Inconclusive, format!("dropped: two counts of {side} differ, {a} and {b}"));
        }
    }
    let ratio = (after as f64 / before.max(1) as f64).ln();
    let floor = policy.instructions_floor;
    let seen = format!("{before} to {after}");
    match ratio {
        ratio if ratio > floor.ln_1p() => of(Verdict::Regressed, format!("{seen}: as if {}", change(ratio))),
        ratio if ratio < -floor.ln_1p() => of(Verdict::Improved, format!("{seen}: as if {}", change(ratio))),
        _ => of(Verdict::Unchanged, format!("{seen}, within {}", percent(floor))),
    }
}

fn memory(base: Count, head: Count, policy: &Policy) -> Option<MetricComparison> {
    let (before, after) = (base.extra_peak_bytes?, head.extra_peak_bytes?);
    let slack = |bytes: u64| policy.memory_slack_bytes.max((bytes as f64 * policy.memory_share) as u64);
    let (verdict, reason) = if after > before.saturating_add(slack(before)) {
        (Verdict::Regressed, format!("{} bytes more", after - before))
    } else if before > after.saturating_add(slack(after)) {
        (Verdict::Improved, format!("{} bytes less", before - after))
    } else {
        (Verdict::Unchanged, "within the threshold".to_owned())
    };
    Some(metric(MEMORY, before, after, verdict, reason))
}

/// Exact work is a property of the problem: where the sides count it differently, one of them is wrong, and rates do not
/// compare. That is shown, and nobody's regression.
fn work([base, head]: [Option<Work>; 2]) -> Vec<MetricComparison> {
    let (Some(base), Some(head)) = (base, head) else { return Vec::new() };
    let counts = [
        ("work_flops", base.flops, head.flops),
        ("work_read_bytes", base.read_bytes, head.read_bytes),
        ("work_write_bytes", base.write_bytes, head.write_bytes),
    ];
    let of = |(name, before, after): (&str, u64, u64)| {
        let reason = format!("counted differently: {before} to {after}");
        (before != after).then(|| metric(name, before, after, Verdict::Unchanged, reason))
    };
    counts.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: [u64; 2], bytes: u64) -> Counts {
        Ok(instructions.map(|instructions| Count { instructions, extra_peak_bytes: Some(bytes) }))
    }

    fn counted(base: Counts, head: Counts) -> CountedCase {
        CountedCase { case_id: "cpu/a".into(), base, head, work: [None, None] }
    }

    fn judged_with<'a>(
        cases: &'a [CountedCase],
        isa: Option<&'a str>,
        change: impl FnOnce(&mut Counted<'a>),
    ) -> CountedReport {
        static SIDE: std::sync::LazyLock<Side> = std::sync::LazyLock::new(Side::default);
        let mut counted = Counted {
            cases,
            isa,
            native_isa: "avx2",
            kernels: None,
            removed: &[],
            acceptances: &[],
            sides: [&SIDE, &SIDE],
            strict: false,
        };
        change(&mut counted);
        judge(counted, &Policy::default())
    }

    fn judged(base: Counts, head: Counts, isa: Option<&str>) -> CountedReport {
        judged_with(&[counted(base, head)], isa, |_| {})
    }

    fn verdict(report: &CountedReport) -> (Verdict, Exit) {
        (report.gate.comparison.cases[0].verdict, report.gate.exit())
    }

    #[test]
    fn counts_are_compared_with_a_threshold() {
        let base = || counts([1000, 1000], 100);
        for (head, expected, exit) in [
            (counts([1009, 1009], 100), Verdict::Unchanged, Exit::Pass),
            (counts([1011, 1011], 100), Verdict::Regressed, Exit::Regression),
            (counts([900, 900], 100), Verdict::Improved, Exit::Pass),
            (counts([1000, 1001], 100), Verdict::Inconclusive, Exit::Undecided),
            (counts([1000, 1000], 1 << 20), Verdict::Regressed, Exit::Regression),
            (Err("crashed".into()), Verdict::Regressed, Exit::Regression),
        ] {
            let report = judged(base(), head, Some("avx2"));
            assert_eq!(verdict(&report), (expected, exit), "{report:?}");
        }
        assert_eq!(judged(Err("a".into()), Err("b".into()), None).gate.exit(), Exit::Failed);
        assert_eq!(judged(Err("a".into()), base(), None).gate.exit(), Exit::Undecided);
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
        let case = [counted(counts([10, 10], 1), counts([10, 10], 1))];
        let base: &ByArchitecture = Box::leak(Box::new(compiled(32)));
        let judged = |head: u32| {
            judged_with(&case, None, |counted| counted.kernels = Some([base, Box::leak(Box::new(compiled(head)))]))
        };
        assert_eq!((judged(32).gate.exit(), judged(32).kernels_compared), (Exit::Pass, Some(1)));
        let worse = judged(33);
        assert_eq!(
            (worse.gate.exit(), worse.gate.causes),
            (Exit::Regression, vec!["1 CUDA kernel regressed".to_owned()])
        );
        assert!(worse.gate.comparison.notes[0].contains("32 to 33 registers"));
    }

    #[test]
    fn another_instruction_set_is_not_comparable() {
        let same = || counts([10, 10], 1);
        let report = judged(same(), same(), Some("portable"));
        assert_eq!(verdict(&report), (Verdict::NotComparable, Exit::NotComparable));
        let reason = &report.gate.comparison.cases[0].reason;
        assert!(reason.contains("portable") && reason.contains("avx2"));
        assert_eq!(judged(same(), same(), None).gate.headline, "judged 1 of 1 by instructions, as unknown");
    }

    #[test]
    fn work_that_is_counted_differently_is_shown_and_nobodys_regression() {
        let problem =
            "cpu/flash/softmax/prefill/full/f32/b1/h1:1/q8/k8/d16".parse::<crate::case::Case>().unwrap().problem;
        let base = Work::of(&problem);
        let mut case = counted(counts([10, 10], 1), counts([10, 10], 1));
        case.work = [Some(base), Some(Work { flops: base.flops + 2, ..base })];
        let report = judged_with(&[case.clone()], None, |_| {});
        assert_eq!(verdict(&report), (Verdict::Unchanged, Exit::Pass));
        assert!(report.gate.comparison.cases[0].metric("work_flops").is_some());
        assert!(report.gate.comparison.notes[0].contains("1 case is counted differently"));
        case.work[1] = case.work[0];
        assert!(judged_with(&[case], None, |_| {}).gate.comparison.notes.is_empty());
    }

    #[test]
    fn removed_cases_fail_and_acceptances_let_through() {
        let slower = counted(counts([1000, 1000], 1), counts([1100, 1100], 1));
        let key = CaseKey { case_id: "cpu/gone".into(), mode: Mode::Cold, threads: 1 };
        let gone = judged_with(&[], None, |counted| counted.removed = std::slice::from_ref(Box::leak(Box::new(key))));
        assert_eq!(verdict(&gone), (Verdict::Regressed, Exit::Regression));
        let accept = |bound: f64| {
            let acceptance = Acceptance {
                case: "cpu/*".into(),
                metric: INSTRUCTIONS.into(),
                at_most: Some(bound),
                reason: "checks".into(),
                by: "a".into(),
                expires: "2099-01-01".into(),
                commit: None,
            };
            acceptance.check().unwrap();
            vec![acceptance]
        };
        for (bound, exit) in [(0.2, Exit::Pass), (0.05, Exit::Regression)] {
            let acceptances = accept(bound);
            let report = judged_with(std::slice::from_ref(&slower), None, |counted| {
                counted.acceptances = Box::leak(acceptances.into())
            });
            assert_eq!((report.gate.exit(), report.gate.accepted.len()), (exit, usize::from(exit == Exit::Pass)));
        }
        let dropped = counted(counts([1000, 1001], 1), counts([1000, 1000], 1));
        let many = [vec![dropped], vec![counted(counts([5, 5], 1), counts([5, 5], 1)); 19]].concat();
        assert_eq!(judged_with(&many, None, |_| {}).gate.exit(), Exit::Pass);
        assert_eq!(judged_with(&many, None, |counted| counted.strict = true).gate.exit(), Exit::Undecided);
    }

    #[test]
    fn every_format_shows_it_and_reads_it_back() {
        let report = judged(counts([1000, 1000], 100), counts([1100, 1100], 100), Some("avx2"));
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.starts_with("{\"headline\""), "which is how files of gates are recognised");
        assert_eq!(serde_json::from_str::<GateReport>(&text).unwrap(), report.gate);
        for format in crate::report::FORMATS {
            let text = (format.write)(crate::report::Subject::Gate(&report.gate));
            assert!(!text.is_empty(), "{}", format.name);
        }
        let markdown = crate::report::format("markdown").unwrap();
        assert!((markdown.write)(crate::report::Subject::Gate(&report.gate)).contains("1000 to 1100"));
    }
}
