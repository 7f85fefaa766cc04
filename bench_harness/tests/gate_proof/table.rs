//! Prints how often the gate cries wolf over two builds that do not differ, and what it finds, with 95 % intervals:
//!
//! ```sh
//! cargo run --release -p attnbench --example gate_proof            # 1000 gates of 200 cases a line
//! cargo run --release -p attnbench --example gate_proof -- 100     # fewer, sooner
//! cargo run --release -p attnbench --example gate_proof -- 1000 gaussian found   # one noise, and only what is found
//! ```
//!
//! Its seeds are others than those of the tests, by whose outcomes constants were chosen.

mod bisection;
mod gate;
mod measure;
mod noise;
#[path = "../support/simulated.rs"]
mod simulated;

use std::ops::Range;
use std::time::Instant;

use attnbench::gate::policy::Policy;
use gate::CASES;
use measure::{family_power, power, unchanged};
use noise::Noise;
use simulated::Share;

/// No test has seen it nor any after it.
const FIRST_SEED: u64 = 10_000;

fn main() {
    let gates: u64 = std::env::args().nth(1).map_or(1000, |text| text.parse().expect("a number of gates"));
    let named = std::env::args().nth(2).unwrap_or_default().to_lowercase();
    let noises: Vec<Noise> =
        Noise::ALL.into_iter().filter(|noise| noise.name().to_lowercase().contains(&named)).collect();
    let only_found = std::env::args().nth(3).is_some_and(|word| word == "found");
    let seeds = FIRST_SEED..FIRST_SEED + gates;
    let policy = Policy::default();
    let started = Instant::now();
    println!("{gates} gates of {CASES} cases a noise; 95 % intervals in brackets.\n");
    if !only_found {
        print_unchanged(&noises, &policy, &seeds);
    }
    print_found(&noises, &policy, &seeds);
    println!("\n{:.0} s on all cores", started.elapsed().as_secs_f64());
}

fn print_unchanged(noises: &[Noise], policy: &Policy, seeds: &Range<u64>) {
    println!("Two builds that do not differ:\n");
    println!(
        "| noise of a side a round | exit not 0 | a case | a family | controls | undecided | other metrics | pairs a case | median MDE |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for &noise in noises {
        let seen = unchanged(noise, policy, seeds.clone());
        let causes = seen.by_cause.map(|share| format!("{:.1} %", share.percent())).join(" | ");
        let (pairs, error) = seen.pairs;
        let pairs = format!("{pairs:.2} [{:.2}, {:.2}]", pairs - 1.96 * error, pairs + 1.96 * error);
        println!("| {} | {} | {causes} | {pairs} | {:.1} % |", noise.name(), figure(seen.alarms), 100.0 * seen.mde);
    }
}

fn print_found(noises: &[Noise], policy: &Policy, seeds: &Range<u64>) {
    println!("\nOne case of the {CASES} is slower, or all 20 of a family by 0.8 %:\n");
    println!("| noise of a side a round | 2 % slower is found | 5 % slower is found | the family is found |");
    println!("|---|---|---|---|");
    for &noise in noises {
        let [two, five] = [0.02, 0.05].map(|slowdown| figure(power(noise, slowdown, policy, seeds.clone())));
        let family = figure(family_power(noise, 0.008, policy, seeds.clone()));
        println!("| {} | {two} | {five} | {family} |", noise.name());
    }
    println!("\nBisections over {} commits, of which one is 5 % slower:\n", bisection::COMMITS);
    println!("| noise of a side a round | the right culprit | pairs of a search |");
    println!("|---|---|---|");
    for &noise in noises {
        let seen = bisection::searches(noise, 0.05, seeds.clone());
        println!("| {} | {} | {:.0} |", noise.name(), figure(seen.right), seen.mean_pairs);
    }
}

fn figure(share: Share) -> String {
    let (low, high) = share.interval();
    format!("{:.1} % [{low:.1}, {high:.1}]", share.percent())
}
