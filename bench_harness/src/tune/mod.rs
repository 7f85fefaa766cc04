//! Which tiles a kernel should take: its candidates against the one that it takes, on problems of a suite.
//!
//! A candidate is measured as any case is ([`attn_kernels::cuda::tiles`]), beside the others of its problem in the same
//! rounds. Two sets of rounds decide: the first, of all candidates, names one contender for each class of problems; the
//! second, of nothing but contenders and what is taken, tells whether they are faster. So whoever was lucky once is not
//! believed, and nothing is to be corrected for the number of candidates. No code changes: a record says what should.

pub mod choose;
pub mod fit;

use attn_kernels::cuda::tiles::{TILES_SEPARATOR, Tiles};
use attn_kernels::cuda::{self, CUDA_KERNELS, CudaKernel};

use crate::suite::{CaseGlob, MatrixInfo, PlannedCase, Suite};

/// Problems that have one choice of tiles, and what there is to choose from.
#[derive(Clone, Debug)]
pub struct Contest {
    /// The kernel: `flash`.
    pub kernel: String,
    /// The class of its problems: `d128 plain`.
    pub class: String,
    /// What the kernel takes.
    pub taken: Tiles,
    /// What it might take instead.
    pub others: Vec<Tiles>,
    /// The problems, as cases of the kernel itself.
    pub cases: Vec<PlannedCase>,
}

impl Contest {
    /// What the kernel takes, and what it might.
    pub fn candidates(&self) -> impl Iterator<Item = Tiles> {
        std::iter::once(self.taken).chain(self.others.iter().copied())
    }

    /// A case with these tiles instead of the kernel's own.
    pub fn case_with(case: &PlannedCase, tiles: Tiles) -> PlannedCase {
        let mut case = case.clone();
        case.case.kernel = format!("{}{TILES_SEPARATOR}{tiles}", case.case.kernel);
        case
    }
}

/// Why there is nothing to choose.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TuneError {
    /// A name that no kernel has.
    #[error("tuning kernel `{0}`: there is none of that name with a choice of tiles; {with_choice} have one", with_choice = with_choice())]
    NoSuchKernel(String),
    /// No case of the suite is of a kernel with a choice.
    #[error(
        "tuning suite `{suite}`: none of its {cases} selected cases has a choice of tiles; {with_choice} have one on CUDA \
         devices, for problems that it supports (most of them in bf16 and f16: --dtype bf16)",
        with_choice = with_choice()
    )]
    NothingToChoose {
        /// The suite.
        suite: String,
        /// Its cases.
        cases: usize,
    },
}

fn has_choice(kernel: &dyn CudaKernel) -> bool {
    kernel.tile_classes().iter().any(|class| class.others().next().is_some())
}

fn with_choice() -> String {
    CUDA_KERNELS.iter().filter(|kernel| has_choice(**kernel)).map(|kernel| kernel.name()).collect::<Vec<_>>().join(", ")
}

/// The contests among a suite's cases, in the suite's order: of the named kernels, or of all; among the candidates whose
/// names match one of the globs, or among all. What is taken always takes part.
///
/// # Errors
/// [`TuneError`].
pub fn contests(suite: &Suite, kernels: &[String], tiles: &[CaseGlob]) -> Result<Vec<Contest>, TuneError> {
    let is_known = |name: &str| CUDA_KERNELS.iter().any(|kernel| kernel.name() == name && has_choice(*kernel));
    if let Some(unknown) = kernels.iter().find(|name| !is_known(name)) {
        return Err(TuneError::NoSuchKernel(unknown.clone()));
    }
    let is_wanted = |name: &String| kernels.is_empty() || kernels.contains(name);
    let matches = |candidate: &Tiles| tiles.is_empty() || tiles.iter().any(|glob| glob.matches(&candidate.to_string()));
    let mut contests: Vec<Contest> = Vec::new();
    for case in suite.cases.iter().filter(|case| case.case.provider == "cuda" && is_wanted(&case.case.kernel)) {
        let Some(kernel) = cuda::find(&case.case.kernel) else { continue };
        let problem = &case.case.problem;
        let Some(class) = kernel.supports(problem).ok().and_then(|()| kernel.tile_class(problem)) else { continue };
        let known = contests.iter_mut().find(|known| known.kernel == kernel.name() && known.class == class.name);
        if let Some(contest) = known {
            contest.cases.push(case.clone());
            continue;
        }
        contests.push(Contest {
            kernel: kernel.name().to_owned(),
            class: class.name.to_owned(),
            taken: class.taken(),
            others: class.others().filter(matches).collect(),
            cases: vec![case.clone()],
        });
    }
    contests.retain(|contest| !contest.others.is_empty());
    if contests.is_empty() {
        return Err(TuneError::NothingToChoose { suite: suite.name.clone(), cases: suite.cases.len() });
    }
    Ok(contests)
}

/// A suite that measures these candidates of each contest on all of its problems, in so many rounds.
pub fn suite_of(suite: &Suite, stage: &str, contests: &[(&Contest, Vec<Tiles>)], rounds: u32) -> Suite {
    let mut matrices = Vec::new();
    let mut cases = Vec::new();
    for (contest, candidates) in contests {
        let name = format!("{} {}", contest.kernel, contest.class);
        for case in &contest.cases {
            for &tiles in candidates {
                let mut case = Contest::case_with(case, tiles);
                case.matrix.clone_from(&name);
                case.settings.rounds = rounds;
                cases.push(case);
            }
        }
        let reason = "tiles of one class of problems".to_owned();
        matrices.push(MatrixInfo { name, reason, cases: contest.cases.len() * candidates.len() });
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(suite.hash.as_bytes());
    for case in &cases {
        hasher.update(case.key().to_string().as_bytes());
    }
    Suite {
        name: format!("tune-{}-{stage}", suite.name),
        description: format!("which tiles are fastest on the problems of {}", suite.name),
        hash: hasher.finalize().to_hex().to_string(),
        seed: suite.seed,
        matrices,
        cases,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::Case;
    use crate::suite::MeasureSettings;

    /// A suite of these case ids.
    pub(crate) fn suite(ids: &[&str]) -> Suite {
        let case = |id: &&str| PlannedCase {
            case: id.parse::<Case>().expect("an id"),
            matrix: "m".into(),
            threads: 0,
            settings: MeasureSettings::default(),
            slowdown: 0.0,
        };
        Suite {
            name: "small".into(),
            description: String::new(),
            hash: "00".into(),
            seed: 1,
            matrices: vec![],
            cases: ids.iter().map(case).collect(),
        }
    }

    pub(crate) const IDS: [&str; 5] = [
        "cuda/flash/softmax/prefill/full/bf16/b1/h2:1/q100/k100/d128",
        "cuda/flash/softmax/prefill/full/f16/b1/h2:1/q200/k200/d128",
        "cuda/flash/softmax/prefill/full/bf16/b1/h2:1/q100/k100/d64",
        "cuda/flash/softmax/prefill/full/f32/b1/h2:1/q100/k100/d64",
        "cuda/naive/softmax/prefill/full/bf16/b1/h2:1/q100/k100/d64",
    ];

    #[test]
    fn problems_of_a_class_have_one_contest() {
        let suite = suite(&IDS);
        let found = contests(&suite, &[], &[]).unwrap();
        let seen: Vec<(&str, &str, usize)> =
            found.iter().map(|c| (c.kernel.as_str(), c.class.as_str(), c.cases.len())).collect();
        assert_eq!(seen, [("flash", "d128 plain", 2), ("flash", "d64 plain", 1)], "f32 and naive have no choice");
        assert!(found.iter().all(|contest| !contest.others.contains(&contest.taken) && contest.others.len() >= 5));
        let glob = |text: &str| CaseGlob::parse(text).unwrap();
        let few = contests(&suite, &["flash".into()], &[glob("rows64-keys64-*")]).unwrap();
        assert_eq!(few[0].others.iter().map(Tiles::to_string).collect::<Vec<_>>(), ["rows64-keys64-warps4"]);
        let staged = suite_of(&suite, "screen", &[(&few[0], few[0].candidates().collect())], 3);
        assert_eq!((staged.cases.len(), staged.matrices[0].cases, staged.cases[0].settings.rounds), (4, 4, 3));
        assert_eq!(staged.cases[1].case.kernel, "flash+rows64-keys64-warps4");
        // Their ids are of the grammar.
        for case in &staged.cases {
            assert_eq!(case.case.id().parse::<Case>().unwrap(), case.case);
        }
    }

    #[test]
    fn nothing_to_choose_is_an_error_that_says_what_has_a_choice() {
        let none = contests(&suite(&IDS[3..]), &[], &[]).unwrap_err().to_string();
        assert!(none.contains("none of its 2 selected cases") && none.contains("flash"), "{none}");
        let unknown = contests(&suite(&IDS), &["naive".into()], &[]).unwrap_err().to_string();
        assert!(unknown.contains("`naive`") && unknown.contains("flash"), "{unknown}");
        assert!(contests(&suite(&IDS), &[], &[CaseGlob::parse("x*").unwrap()]).is_err());
    }
}
