//! `attnbench bisect`: which commit made a case slower?

mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Context, bail};

use super::gate::pairs::Options;
use super::run::{interrupt, run_id};
use super::{Exit, terminal};
use crate::bisect::MAX_PAIRS;
use crate::bisect::journal::{Effect, Journal, Question};
use crate::bisect::search::{Graph, Next, Seen};
use crate::device::cpu::info::CpuInfo;
use crate::rules::RuleSource;
use crate::stats::sequential::Answer;
use crate::suite::CaseGlob;
use crate::vcs::Snapshot;
use crate::vcs::range::{RangeCommit, between, is_ancestor};
use measure::{Measured, Measurer};
use report::Report;

/// Find the commit that made a case slower, by measuring commits between a good and a bad one
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  attnbench bisect --case 'cpu/flash/softmax/prefill/*' --good v1.2.0 --bad main
  attnbench bisect --case ID --good v1.2.0 --bad HEAD --build 'make -j2' --binary build/worker --provider mine='{worker}'
  attnbench bisect --case ID --good v1.2.0 --bad main --resume results/bisect-20260101T000000Z.json

First bad is confirmed to be slower than good, by new pairs beyond the floor, and by how much; else there is nothing to
search. Each commit is then measured against good until it is as fast or as slow, wrong with 1 % over the whole search.
Commits that do not build or run are passed over. The culprit is confirmed against its parent.

Exit codes: 0 the culprit is found and confirmed, 2 usage or bad input, 3 no difference, or no culprit that could be
confirmed, 5 good or bad cannot be measured.")]
pub struct Args {
    /// Case id, or a glob of just one case of the suite
    #[arg(long, value_name = "ID")]
    case: CaseGlob,
    /// A commit that is fast, an ancestor of the bad one
    #[arg(long, value_name = "REF")]
    good: String,
    /// A commit that is slow
    #[arg(long, value_name = "REF")]
    bad: String,
    /// Search first parents only: of a merge, not what was merged
    #[arg(long)]
    first_parent: bool,
    #[command(flatten)]
    pairs: Options,
    /// Where the search is kept [default: results/bisect-TIME.json]
    #[arg(long, short, value_name = "FILE", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with a search that was stopped; the rest as in the first call
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> anyhow::Result<Exit> {
    let stop = interrupt::stop_flag()?;
    let builds = args.pairs.builds(stop.clone())?;
    let (good, bad) = (builds.sources().commit(&args.good)?, builds.sources().commit(&args.bad)?);
    let range = range(&args, builds.sources().root(), &good, &bad)?;
    let graph = Graph::new(range.iter().map(|commit| commit.parents.clone()).collect());

    let today = jiff::Zoned::now().date().to_string();
    let cpu = CpuInfo::read();
    let source = RuleSource { sources: builds.sources(), base: &good, head: &bad, device: &cpu.slug(), today: &today };
    let mut rules = source.read(&args.pairs.suite, None)?;
    rules.policy.simulations = 0;
    args.pairs.select(&mut rules.suite.cases);
    rules.suite.cases.retain(|case| args.case.matches(&case.case.id()));
    let case = match &rules.suite.cases[..] {
        [case] => case.key().to_string(),
        [] => bail!("choosing the case: suite `{}` has none of that id that both commits know", rules.suite.name),
        several => {
            let names: Vec<String> = several.iter().take(8).map(|case| case.key().to_string()).collect();
            bail!("choosing the case: {} match, as {}; name one", several.len(), names.join(", "))
        }
    };

    let command = args.pairs.command()?;
    let (good_id, bad_id) = (good.commit.clone(), bad.commit.clone());
    let build = format!("{} -> {}", args.pairs.build, command.binary.display());
    let question = Question { case, good: good_id, bad: bad_id, first_parent: args.first_parent, build };
    let (path, mut journal) = match &args.resume {
        Some(path) => (path.clone(), Journal::resume(path, &question)?),
        None => {
            let name = || PathBuf::from(format!("results/bisect-{}.json", run_id(jiff::Timestamp::now())));
            (args.out.clone().unwrap_or_else(name), Journal::new(question))
        }
    };
    journal.save(&path)?;
    eprintln!(
        "{} commits between good and bad, at most {} tests; kept in {}",
        range.len(),
        graph.steps(),
        path.display()
    );
    let measurer = Measurer::new(&args.pairs, &builds, command, &rules, stop)?;

    let effect = match &journal.effect {
        Some(effect) => effect.clone(),
        None => match confirm(&measurer, &good, &bad)? {
            Confirmed::Slower(effect) => effect,
            Confirmed::Not(why) => {
                eprintln!("nothing to search: bad against good is {why}");
                return Ok(Exit::Undecided);
            }
            Confirmed::Failed(why) => {
                eprintln!("nothing to search: {why}");
                return Ok(Exit::Failed);
            }
        },
    };
    journal.effect = Some(effect.clone());
    journal.save(&path)?;
    eprintln!("bad is {:.1} % slower than good", 100.0 * effect.log_ratio.exp_m1());
    let test = effect.test(&graph).context("preparing the tests: the effect or its noise is no usable number")?;

    let end = loop {
        let found: Vec<(usize, Seen)> = journal
            .tests
            .iter()
            .filter_map(|test| Some((range.iter().position(|commit| commit.id == test.commit)?, test.seen?)))
            .collect();
        let next = match graph.next(&found) {
            Next::Test(commit) => commit,
            end => break end,
        };
        let commit = builds.sources().commit(&range[next].id)?;
        let mut kept = Ok(());
        let earlier = journal.test(&commit.commit).log_ratios.clone();
        let measured = measurer.pairs(&good, &commit, &mut |pairs| {
            let all = [&earlier[..], pairs].concat();
            journal.test(&commit.commit).log_ratios.clone_from(&all);
            kept = journal.save(&path);
            kept.is_ok() && test.answer(&all) == Answer::Open && all.len() < MAX_PAIRS
        })?;
        kept?;
        let entry = journal.test(&commit.commit);
        (entry.seen, entry.reason) = match (measured, test.answer(&entry.log_ratios)) {
            (Measured::Failed { is_head: false, reason }, _) => bail!("measuring the good commit: {reason}"),
            (Measured::Failed { reason, .. }, _) => (Some(Seen::Untestable), Some(reason)),
            (Measured::Done, Answer::Effect) => (Some(Seen::Bad), None),
            (Measured::Done, Answer::NoEffect) => (Some(Seen::Good), None),
            (Measured::Done, Answer::Open) => {
                (Some(Seen::Untestable), Some(format!("neither fast nor slow after {MAX_PAIRS} pairs")))
            }
        };
        eprintln!("{}", report::test_line(&range[next], entry));
        journal.save(&path)?;
    };
    let confirmation = match &end {
        Next::Culprit(commit) => Some(confirm_culprit(&measurer, &builds, &range[*commit])?),
        _ => None,
    };
    let report = Report::new(&journal, &range, &end, confirmation);
    if args.json {
        terminal::print_json(&report)?;
    } else {
        terminal::print(report.text().trim_end())?;
    }
    Ok(if report.is_confirmed() { Exit::Pass } else { Exit::Undecided })
}

fn range(args: &Args, root: &std::path::Path, good: &Snapshot, bad: &Snapshot) -> anyhow::Result<Vec<RangeCommit>> {
    if !is_ancestor(root, &good.commit, &bad.commit)? {
        bail!(
            "searching between `{}` and `{}`: good is no ancestor of bad; name an older good commit, such as their merge \
             base",
            args.good,
            args.bad
        );
    }
    let range = between(root, &good.commit, &bad.commit, args.first_parent)?;
    if range.is_empty() {
        bail!("searching between `{}` and `{}`: they are one commit", args.good, args.bad);
    }
    Ok(range)
}

enum Confirmed {
    Slower(Effect),
    Not(String),
    Failed(String),
}

/// Judges one commit against another as a gate does.
fn confirm(measurer: &Measurer<'_>, base: &Snapshot, head: &Snapshot) -> anyhow::Result<Confirmed> {
    let (finding, log_ratios) = match measurer.judge(base, head)? {
        Ok(judged) => judged,
        Err(reason) => return Ok(Confirmed::Failed(reason)),
    };
    let why = format!("{}: {}", finding.verdict.name(), finding.reason);
    Ok(Effect::of(&finding, log_ratios).map_or(Confirmed::Not(why), Confirmed::Slower))
}

fn confirm_culprit(
    measurer: &Measurer<'_>,
    builds: &crate::build::Builds,
    culprit: &RangeCommit,
) -> anyhow::Result<Result<f64, String>> {
    let Some(parent) = &culprit.first_parent else { return Ok(Err("it has no parent".to_owned())) };
    let (parent, head) = (builds.sources().commit(parent)?, builds.sources().commit(&culprit.id)?);
    Ok(match confirm(measurer, &parent, &head)? {
        Confirmed::Slower(effect) => Ok(effect.log_ratio.exp_m1()),
        Confirmed::Not(why) | Confirmed::Failed(why) => Err(why),
    })
}
