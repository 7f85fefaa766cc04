//! Prints how often the change-point detector cries wolf and what it finds, with 95 % intervals:
//!
//! ```sh
//! cargo run --release -p attnbench --example change_points             # 2000 series a line
//! cargo run --release -p attnbench --example change_points -- 10000
//! ```

mod measure;
mod series;
#[path = "../support/simulated.rs"]
mod simulated;

use std::time::Instant;

use attnbench::stats::change_point::{Settings, change_points};
use measure::{LENGTH, NEAR, false_alarms, power};
use rayon::prelude::*;
use series::{Noise, generator};
use simulated::Share;

/// No constant was chosen by looking at it or at any after it.
const FIRST_SERIES: u64 = 1_000_000;

fn main() {
    let count: u64 = std::env::args().nth(1).map_or(2000, |text| text.parse().expect("a number of series"));
    let series = FIRST_SERIES..FIRST_SERIES + count;
    let figure = |share: Share| {
        let (low, high) = share.interval();
        format!("{:6.2} % [{low:5.2}, {high:6.2}]", share.percent())
    };
    println!("{count} series of {LENGTH} values a line; 95 % intervals in brackets\n");
    println!("{:44} {:>25}", "clean series with a change", "");
    let alarms: Vec<_> = Noise::ALL.par_iter().map(|&noise| (noise, false_alarms(noise, series.clone()))).collect();
    for (noise, share) in alarms {
        println!("{:44} {:>25}", noise.name(), figure(share));
    }
    let steps: Vec<(Noise, f64)> = [
        (Noise::White, 0.03),
        (Noise::Autoregressive, 0.03),
        (Noise::White, 0.01),
        (Noise::White, -0.03),
        (Noise::HeavyTailed, 0.03),
        (Noise::Spiky, 0.03),
        (Noise::Bimodal, 0.03),
        (Noise::Excursions, 0.03),
        (Noise::Trend, 0.03),
        (Noise::Waves, 0.03),
        (Noise::Noisier, 0.03),
        (Noise::White, 0.3),
    ]
    .into();
    let found: Vec<_> =
        steps.par_iter().map(|&(noise, size)| (noise, size, power(noise, size, series.clone()))).collect();
    println!(
        "\n{:44} {:>25} {:>25} {:>25}",
        "one step",
        format!("within {NEAR}"),
        "more than one change",
        "in the interval"
    );
    for (noise, size, found) in found {
        let name = format!("{:+.0} % in {}", 100.0 * size, noise.name());
        let (near, extra, covered) = (figure(found.near), figure(found.extra), figure(found.covered));
        println!("{name:44} {near:>25} {extra:>25} {covered:>25}");
    }

    println!("\n{:44} {:>25}", "10000 series of 500 values", "seconds on all cores");
    for noise in [Noise::White, Noise::Autoregressive, Noise::Spiky] {
        let series: Vec<Vec<f64>> = (0..10_000).map(|number| noise.series(500, &mut generator(3, number))).collect();
        let started = Instant::now();
        let changes: usize = series.par_iter().map(|values| change_points(values, &Settings::default()).len()).sum();
        println!("{:44} {:>25.2} ({changes} changes)", noise.name(), started.elapsed().as_secs_f64());
    }
    let stepped: Vec<Vec<f64>> =
        (0..10_000).map(|number| series::with_step(Noise::White, 500, 0.03, &mut generator(4, number)).0).collect();
    let started = Instant::now();
    let changes: usize = stepped.par_iter().map(|values| change_points(values, &Settings::default()).len()).sum();
    println!("{:44} {:>25.2} ({changes} changes)", "white, with a step of 3 %", started.elapsed().as_secs_f64());
}
