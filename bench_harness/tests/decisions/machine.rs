//! Simulated machines: noise of the kinds that real ones have.

use attnbench::case::{CaseKey, Mode};
use attnbench::compare::{BASELINE_VERSION, Baseline, Session, SessionCase, SessionControl};
use attnbench::record::{ControlKind, Disposition};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// What a machine does to times beside running the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Noise {
    /// Independent, normal, of this standard deviation.
    White(f64),
    /// Of this standard deviation, each round half like the one before.
    Autocorrelated(f64),
    /// One round in five is slower by this share.
    Bimodal(f64),
    /// White of 1 %, and the machine slows down by this share from the first to the last round, for kernels and controls.
    Drifting(f64),
    /// White of 1 %, with one round in fifty at three times its time.
    Spiky,
    /// White of 1 %, and each session has its own speed, of this standard deviation, for kernels and controls.
    Sessions(f64),
}

/// Normal noise from four uniform values: light tails, mean 0, standard deviation 1.
pub(crate) fn normal(rng: &mut Pcg64) -> f64 {
    (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt()
}

impl Noise {
    /// Log times of `rounds` rounds around zero, `speed` being the session's own.
    pub(crate) fn rounds(self, rounds: usize, speed: f64, rng: &mut Pcg64) -> Vec<f64> {
        let mut state = normal(rng);
        (0..rounds)
            .map(|round| match self {
                Noise::White(deviation) => deviation * normal(rng),
                Noise::Autocorrelated(deviation) => {
                    state = 0.5 * state + 0.75f64.sqrt() * normal(rng);
                    deviation * state
                }
                Noise::Bimodal(share) => 0.005 * normal(rng) + if rng.random::<f64>() < 0.2 { share } else { 0.0 },
                Noise::Drifting(share) => 0.01 * normal(rng) + share * round as f64 / rounds as f64,
                Noise::Spiky => 0.01 * normal(rng) + if rng.random::<f64>() < 0.02 { 3f64.ln() } else { 0.0 },
                Noise::Sessions(_) => 0.01 * normal(rng) + speed,
            })
            .collect()
    }

    fn session_speed(self, rng: &mut Pcg64) -> f64 {
        if let Noise::Sessions(deviation) = self { deviation * normal(rng) } else { 0.0 }
    }
}

/// The key of case number `index`.
pub(crate) fn key(index: usize) -> CaseKey {
    let case_id = format!("cpu/flash/softmax/prefill/full/f32/b1/h8:8/q{0}/k{0}/d64", index + 1);
    CaseKey { case_id, mode: Mode::Cold, threads: 2 }
}

/// A case that was measured.
pub(crate) fn measured(index: usize, round_ns: Vec<f64>) -> SessionCase {
    SessionCase {
        key: key(index),
        disposition: Disposition::Measured,
        reason: None,
        round_ns,
        extra_peak_bytes: Some((1 << 20, 1 << 20)),
        errors: Default::default(),
        flags: vec![],
        clocks: None,
    }
}

/// Sessions of one build whose cases are slower than the first build by `slowdowns`, in log times.
pub(crate) fn sessions(
    name: &str,
    count: usize,
    rounds: usize,
    noise: Noise,
    slowdowns: &[f64],
    seed: u64,
) -> Baseline {
    let mut rng = Pcg64::seed_from_u64(seed);
    let session = |number: usize| {
        let speed = noise.session_speed(&mut rng);
        let mut times = |around: f64| -> Vec<f64> {
            noise.rounds(rounds, speed, &mut rng).into_iter().map(|log| 1e6 * (around + log).exp()).collect()
        };
        let controls = ["read", "copy", "fma/f32"].map(|name| SessionControl {
            name: name.to_owned(),
            kind: if name == "fma/f32" { ControlKind::Fma } else { ControlKind::Copy },
            provider: "cpu".to_owned(),
            mode: Mode::Cold,
            threads: 2,
            work: 1 << 30,
            round_ns: times(0.0),
        });
        Session {
            run_id: format!("{name}-{number}"),
            date: format!("2026-01-{:02}T00:00:00Z", number + 1),
            commit: Some(name.to_owned()),
            dirty: false,
            suite_hash: "00".to_owned(),
            complete: true,
            device_shared: false,
            provenance: Default::default(),
            controls: controls.to_vec(),
            cases: slowdowns.iter().enumerate().map(|(i, &slowdown)| measured(i, times(slowdown))).collect(),
        }
    };
    Baseline {
        baseline_version: BASELINE_VERSION,
        device: "simulated".to_owned(),
        suite: "simulated".to_owned(),
        fingerprint: Default::default(),
        sessions: (0..count).map(session).collect(),
    }
}
