//! What the CUDA kernels of two builds take of a multiprocessor, compared: no GPU is needed, and nothing repeats differently.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use attn_kernels::cuda::resources::Resources;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::Verdict;

/// Registers are given to a warp in units of 256, which is 8 a thread (CUDA C++ Programming Guide, compute capabilities
/// 8.x and 9.0): more within a unit cost nothing.
const REGISTER_UNIT: u32 = 8;

/// Kernels by architecture, as `attnbench kernels --resources --json` prints them.
pub type ByArchitecture = BTreeMap<String, Vec<Resources>>;

/// A kernel that takes something else than it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceFinding {
    /// `sm_90a`.
    pub architecture: String,
    /// Its source and options.
    pub module: String,
    /// Its name.
    pub entry: String,
    /// The verdict.
    pub verdict: Verdict,
    /// What differs.
    pub reason: String,
}

/// What differs between the kernels of two builds, and how many both have. New kernels are nobody's regression; one that is
/// gone is, unless `accept_removed`.
pub fn compare(base: &ByArchitecture, head: &ByArchitecture, accept_removed: bool) -> (Vec<ResourceFinding>, usize) {
    let mut findings = Vec::new();
    let mut shared = 0;
    for (architecture, kernels) in base {
        let of_head = head.get(architecture).map_or(&[][..], Vec::as_slice);
        let by_name: BTreeMap<_, _> = of_head.iter().map(|kernel| ((&kernel.module, &kernel.entry), kernel)).collect();
        for before in kernels {
            let found = match by_name.get(&(&before.module, &before.entry)) {
                Some(after) => {
                    shared += 1;
                    difference(before, after)
                }
                None if accept_removed => None,
                None => Some((Verdict::Regressed, "removed: head no longer has it".to_owned())),
            };
            if let Some((verdict, reason)) = found {
                let (module, entry) = (before.module.clone(), before.entry.clone());
                findings.push(ResourceFinding { architecture: architecture.clone(), module, entry, verdict, reason });
            }
        }
    }
    (findings, shared)
}

fn difference(before: &Resources, after: &Resources) -> Option<(Verdict, String)> {
    let units = |registers: u32| registers.div_ceil(REGISTER_UNIT);
    let figures = [
        ("registers", before.registers, after.registers, units(before.registers).cmp(&units(after.registers))),
        exact("bytes spilled", before.spill_bytes, after.spill_bytes),
        exact("bytes of stack", before.stack_bytes, after.stack_bytes),
        exact("bytes of shared memory", before.static_shared_bytes, after.static_shared_bytes),
    ];
    let mut said: Vec<String> = figures
        .iter()
        .filter(|(_, before, after, _)| before != after)
        .map(|(what, before, after, _)| format!("{before} to {after} {what}"))
        .collect();
    if let (Some(before), Some(after)) = (&before.instructions, &after.instructions)
        && before.total() != after.total()
    {
        said.push(format!("{} to {} instructions of machine code", before.total(), after.total()));
    }
    if said.is_empty() {
        return None;
    }
    let any = |wanted: Ordering| figures.iter().any(|(.., order)| *order == wanted);
    let verdict = match (any(Ordering::Less), any(Ordering::Greater)) {
        (true, _) => Verdict::Regressed,
        (false, true) => Verdict::Improved,
        (false, false) => Verdict::Unchanged,
    };
    Some((verdict, said.join(", ")))
}

fn exact(what: &str, before: u32, after: u32) -> (&str, u32, u32, Ordering) {
    (what, before, after, before.cmp(&after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(entry: &str, registers: u32, spill_bytes: u32) -> Resources {
        Resources {
            module: "flash".into(),
            entry: entry.into(),
            registers,
            spill_bytes,
            stack_bytes: 0,
            static_shared_bytes: 1024,
            instructions: None,
        }
    }

    fn on_sm_80(kernels: Vec<Resources>) -> ByArchitecture {
        BTreeMap::from([("sm_80".to_owned(), kernels)])
    }

    #[test]
    fn what_a_multiprocessor_cannot_see_is_no_regression() {
        let seen = |before: Resources, after: Resources| {
            compare(&on_sm_80(vec![before]), &on_sm_80(vec![after]), false)
                .0
                .first()
                .map(|found| (found.verdict, found.reason.clone()))
        };
        assert_eq!(seen(kernel("a", 168, 0), kernel("a", 168, 0)), None);
        let (verdict, reason) = seen(kernel("a", 161, 0), kernel("a", 168, 0)).unwrap();
        assert_eq!((verdict, reason.as_str()), (Verdict::Unchanged, "161 to 168 registers"));
        assert_eq!(seen(kernel("a", 168, 0), kernel("a", 169, 0)).unwrap().0, Verdict::Regressed);
        assert_eq!(seen(kernel("a", 169, 0), kernel("a", 128, 0)).unwrap().0, Verdict::Improved);
        // Fewer registers at the price of spills are a loss.
        let (verdict, reason) = seen(kernel("a", 255, 0), kernel("a", 128, 40)).unwrap();
        assert_eq!((verdict, reason.as_str()), (Verdict::Regressed, "255 to 128 registers, 0 to 40 bytes spilled"));
    }

    #[test]
    fn kernels_that_are_gone_count_and_new_ones_do_not() {
        let base = on_sm_80(vec![kernel("a", 8, 0), kernel("b", 8, 0)]);
        let head = on_sm_80(vec![kernel("c", 255, 99), kernel("b", 8, 0)]);
        let (findings, shared) = compare(&base, &head, false);
        assert_eq!((findings.len(), shared), (1, 1));
        assert_eq!((findings[0].entry.as_str(), findings[0].verdict), ("a", Verdict::Regressed));
        assert_eq!(compare(&base, &head, true), (Vec::new(), 1));
        assert_eq!(compare(&base, &BTreeMap::new(), false).0.len(), 2);
    }
}
