//! The search: from what was found of commits to the next one to test, or to the culprit.
//!
//! As `git bisect` does, it picks the commit that splits the candidates best, whatever merges there are: where it is slow,
//! the culprit is it or one of its ancestors; where it is not, neither. A commit that cannot be tested is passed over for
//! the next best.

/// What was found of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// As fast as the good commit.
    Good,
    /// As slow as the bad commit.
    Bad,
    /// It does not build, its case does not run, or no number of pairs answered.
    Untestable,
}

/// Commits between a good one, which is not among them, and a bad one, which is the last; parents come before children.
#[derive(Clone, Debug)]
pub struct Graph {
    parents: Vec<Vec<usize>>,
    /// Of each commit, itself and what it descends from, as bits.
    ancestors: Vec<Vec<u64>>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Test this commit.
    Test(usize),
    /// This commit is the first slow one.
    Culprit(usize),
    /// One of these is, and all but the last of them cannot be tested.
    OneOf(Vec<usize>),
}

impl Graph {
    /// The graph of commits with these parents, given as indices below their own; others are left out.
    pub fn new(parents: Vec<Vec<usize>>) -> Graph {
        let words = parents.len().div_ceil(64);
        let mut ancestors: Vec<Vec<u64>> = Vec::with_capacity(parents.len());
        for (commit, of) in parents.iter().enumerate() {
            let mut bits = vec![0; words];
            bits[commit / 64] |= 1 << (commit % 64);
            for parent in of {
                bits.iter_mut().zip(&ancestors[*parent]).for_each(|(bits, more)| *bits |= more);
            }
            ancestors.push(bits);
        }
        Graph { parents, ancestors }
    }

    /// How many commits there are.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// Tests that a search takes where every commit can be tested: the logarithm of the candidates.
    pub fn steps(&self) -> u32 {
        (self.len().max(2) as u64).next_power_of_two().ilog2()
    }

    /// The next step, given what was found, in any order.
    pub fn next(&self, found: &[(usize, Seen)]) -> Next {
        let mut candidates = vec![u64::MAX; self.len().div_ceil(64)];
        if let Some(last) = candidates.last_mut() {
            *last = u64::MAX >> ((64 - self.len() % 64) % 64);
        }
        for &(commit, seen) in found {
            let below = candidates.iter_mut().zip(&self.ancestors[commit]);
            match seen {
                Seen::Bad => below.for_each(|(bits, ancestors)| *bits &= ancestors),
                Seen::Good => below.for_each(|(bits, ancestors)| *bits &= !ancestors),
                Seen::Untestable => {}
            }
        }
        let left: Vec<usize> =
            (0..self.len()).filter(|&commit| candidates[commit / 64] >> (commit % 64) & 1 == 1).collect();
        // The last candidate is slow: it is the bad commit or the latest that was found to be.
        let Some((&slow, others)) = left.split_last() else { return Next::OneOf(Vec::new()) };
        let count = |commit: usize| {
            let both = self.ancestors[commit].iter().zip(&candidates).map(|(a, b)| (a & b).count_ones() as usize);
            both.sum::<usize>()
        };
        let testable = others.iter().filter(|&&commit| !found.iter().any(|&(other, _)| other == commit));
        let best = testable.max_by_key(|&&commit| {
            let below = count(commit);
            (below.min(left.len() - below), std::cmp::Reverse(commit))
        });
        match (best, others.is_empty()) {
            (Some(&commit), _) => Next::Test(commit),
            (None, true) => Next::Culprit(slow),
            (None, false) => Next::OneOf(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(n: usize) -> Graph {
        Graph::new((0..n).map(|i| if i == 0 { vec![] } else { vec![i - 1] }).collect())
    }

    /// The culprit that a search names, with the number of its tests.
    fn search(graph: &Graph, culprit: usize, untestable: &[usize]) -> (Next, usize) {
        let mut found = Vec::new();
        loop {
            match graph.next(&found) {
                Next::Test(commit) => {
                    let is_slow = graph.ancestors[commit][culprit / 64] >> (culprit % 64) & 1 == 1;
                    let seen = match (untestable.contains(&commit), is_slow) {
                        (true, _) => Seen::Untestable,
                        (_, true) => Seen::Bad,
                        _ => Seen::Good,
                    };
                    found.push((commit, seen));
                }
                end => return (end, found.len()),
            }
        }
    }

    #[test]
    fn every_culprit_of_a_line_is_found_in_few_tests() {
        for n in [1, 2, 3, 63, 64, 65, 130] {
            let graph = line(n);
            for culprit in 0..n {
                let (end, tests) = search(&graph, culprit, &[]);
                assert_eq!(end, Next::Culprit(culprit), "{n}");
                assert!(tests <= graph.steps() as usize, "{n}: {tests}");
            }
        }
        assert_eq!(line(1000).steps(), 10);
    }

    #[test]
    fn commits_that_cannot_be_tested_are_named_with_the_culprit() {
        assert_eq!(search(&line(10), 6, &[5]).0, Next::OneOf(vec![5, 6]));
        assert_eq!(search(&line(10), 7, &[5]).0, Next::Culprit(7));
        assert_eq!(search(&line(10), 5, &[3, 4, 5, 6]).0, Next::OneOf(vec![3, 4, 5, 6, 7]));
    }

    proptest! {
        /// In any graph whose last commit descends from all others, the culprit is found.
        #[test]
        fn merges_do_not_matter(links in prop::collection::vec((0usize..1000, 0usize..1000), 1..80), pick in 0usize..1000) {
            let n = links.len();
            let mut parents: Vec<Vec<usize>> = links.iter().enumerate().map(|(i, &(a, b))| {
                if i == 0 { vec![] } else { vec![a % i, b % i] }
            }).collect();
            let is_parent: Vec<bool> = (0..n).map(|i| parents.iter().any(|of| of.contains(&i))).collect();
            parents[n - 1].extend((0..n - 1).filter(|&i| !is_parent[i]));
            let (end, _) = search(&Graph::new(parents), pick % n, &[]);
            prop_assert_eq!(end, Next::Culprit(pick % n));
        }
    }
}
