//! One run on several machines: each measures a shard of the plan, and all shards take about the same time.
//!
//! The shards follow from the plan alone (and from an earlier record, where one is given), so that every machine of a
//! fleet comes to the same ones without asking another. The longest case goes first, each to the shard with the least
//! so far (Graham, Bounds on Multiprocessing Timing Anomalies, 1969: within 4/3 of the best split).

use std::collections::HashMap;
use std::str::FromStr;

use attn_kernels::input::tensor_bytes;
use attn_kernels::work::Work;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PlannedCase;

/// Most shards: beyond, each would hold a case or two and mostly start processes.
pub const MAX_SHARDS: u32 = 1000;

/// What a device is taken to do where nothing is known of it. Only ratios matter: they say when a case's own time
/// outgrows its budget.
const NOMINAL_FLOPS_PER_S: f64 = 1e11;
const NOMINAL_BYTES_PER_S: f64 = 1e10;
/// FLOPs a second of the f64 oracle, once a case.
const ORACLE_FLOPS_PER_S: f64 = 1e9;
/// Bytes a second at which inputs are made, poisoned and checksummed.
const INPUT_BYTES_PER_S: f64 = 5e8;
/// What a case costs a round whatever it computes: planning, warm-up, requests.
const CASE_NS: f64 = 20e6;

/// A part of a run: the `index`-th of `count`, both from 1. Written `2/5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shard {
    /// From 1.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}` is no shard; the second of five is `2/5`");
        let (index, count) = text.split_once('/').ok_or_else(expected)?;
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| expected());
        let shard = Shard { index: number(index)?, count: number(count)? };
        let Shard { index, count } = shard;
        if count == 0 || count > MAX_SHARDS {
            return Err(format!("`{text}` asks for {count} shards; there are 1 to {MAX_SHARDS}"));
        }
        if index == 0 || index > count {
            return Err(format!("`{text}`: shards are counted from 1 to {count}; there is no number {index}"));
        }
        Ok(shard)
    }
}

/// What an earlier record says of a case's latency, in nanoseconds, by case id: machines of a fleet may differ in threads.
pub type KnownLatencies = HashMap<String, f64>;

/// The shard of each case, from 1 to `count`, in the order of the cases.
///
/// Pure and deterministic: equal plans give equal shards.
pub fn assign(cases: &[PlannedCase], count: u32, known: &KnownLatencies) -> Vec<u32> {
    let expected: Vec<u64> =
        cases.iter().map(|case| expected_ns(case, known.get(&case.case.id()).copied()) as u64).collect();
    let mut longest_first: Vec<usize> = (0..cases.len()).collect();
    // Stable: cases of equal length stay in the plan's order.
    longest_first.sort_by_key(|&case| std::cmp::Reverse(expected[case]));
    let mut loads = vec![0u64; count as usize];
    let mut shards = vec![0; cases.len()];
    for case in longest_first {
        let least = (0..loads.len()).min_by_key(|&shard| loads[shard]).expect("there is a shard");
        loads[least] = loads[least].saturating_add(expected[case]);
        shards[case] = least as u32 + 1;
    }
    shards
}

/// How long a run is expected to be busy with a case, over all rounds, in nanoseconds.
pub fn expected_ns(planned: &PlannedCase, latency_ns: Option<f64>) -> f64 {
    let settings = &planned.settings;
    let work = Work::of(&planned.case.problem);
    let latency_ns = latency_ns.unwrap_or_else(|| {
        let compute = work.flops as f64 / NOMINAL_FLOPS_PER_S;
        let memory = work.bytes() as f64 / NOMINAL_BYTES_PER_S;
        1e9 * compute.max(memory)
    });
    // Sampling ends with the budget, but not before the least samples, nor after the most.
    let budget_ns = settings.budget_ms as f64 * 1e6;
    let least_ns = f64::from(settings.min_samples) * latency_ns;
    let calls_ns = budget_ns.min(f64::from(settings.max_samples) * latency_ns).max(least_ns);
    let inputs_ns = 1e9 * tensor_bytes(&planned.case.problem) as f64 / INPUT_BYTES_PER_S;
    let oracle_ns = 1e9 * (work.flops as f64).min(settings.oracle_flops as f64) / ORACLE_FLOPS_PER_S;
    oracle_ns + f64::from(settings.rounds) * (CASE_NS + inputs_ns + calls_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::{Environment, Suite};
    use proptest::prelude::*;

    fn suite(lengths: &[usize]) -> Suite {
        let list = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let text = format!(
            "description = \"d\"\n[[matrix]]\nname = \"m\"\nreason = \"r\"\nkernels = [\"flash\", \"naive\"]\nheads = 2\n\
             seqlen = [{list}]\nhead_dim = 64\n"
        );
        Suite::parse("s", "s.toml", text.as_bytes(), &Environment::default()).expect("a good suite")
    }

    #[test]
    fn shards_are_parsed_and_refused() {
        assert_eq!("2/5".parse(), Ok(Shard { index: 2, count: 5 }));
        assert_eq!("1000/1000".parse::<Shard>().map(|shard| shard.to_string()), Ok("1000/1000".to_owned()));
        for (text, said) in [
            ("0/5", "counted from 1 to 5"),
            ("6/5", "no number 6"),
            ("1/0", "there are 1 to 1000"),
            ("1/1001", "there are 1 to 1000"),
            ("2", "is no shard"),
            ("a/b", "is no shard"),
            ("-1/2", "is no shard"),
            ("1/2/3", "is no shard"),
        ] {
            assert!(text.parse::<Shard>().is_err_and(|error| error.contains(said)), "{text}");
        }
    }

    #[test]
    fn a_long_case_has_a_shard_to_itself() {
        let mut plan = suite(&[64, 128, 192, 256, 320, 16_384]);
        plan.cases.retain(|case| case.case.kernel == "flash");
        let shards = assign(&plan.cases, 2, &KnownLatencies::new());
        assert_eq!(shards, [2, 2, 2, 2, 2, 1]);
    }

    #[test]
    fn an_earlier_record_knows_better_than_the_work() {
        let plan = suite(&[256, 512, 1024]);
        let slow = plan.cases[1].case.id();
        let known = KnownLatencies::from([(slow, 60e9)]);
        let shards = assign(&plan.cases, 2, &known);
        assert!((0..shards.len()).all(|case| (shards[case] == 1) == (case == 1)), "{shards:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_case_has_one_shard_and_loads_are_within_grahams_bound(
            lengths in prop::collection::btree_set(1usize..3000, 1..12), count in 1u32..9
        ) {
            let plan = suite(&lengths.into_iter().collect::<Vec<_>>());
            let none = KnownLatencies::new();
            let shards = assign(&plan.cases, count, &none);
            prop_assert_eq!(&shards, &assign(&plan.cases, count, &none));
            prop_assert!(shards.iter().all(|shard| (1..=count).contains(shard)));
            let of = |case: usize| expected_ns(&plan.cases[case], None);
            let mut loads = vec![0.0; count as usize];
            (0..shards.len()).for_each(|case| loads[shards[case] as usize - 1] += of(case));
            let (total, longest) = (0..shards.len()).fold((0.0, 0.0f64), |(t, l), c| (t + of(c), l.max(of(c))));
            // No shard ends later than one more case after a perfect split.
            let most = loads.iter().copied().fold(0.0, f64::max);
            prop_assert!(most <= total / f64::from(count) + longest + shards.len() as f64, "{most} of {total}");
        }
    }
}
