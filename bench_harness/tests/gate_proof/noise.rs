//! Simulated machines. Their noise belongs to slots of time: which side a slot times is decided afterwards, by a coin.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::simulated::normal;

/// What a machine does to times, of 1 % where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noise {
    /// Independent and normal.
    Gaussian,
    /// Student's t with 3 degrees of freedom, scaled to a standard deviation of 1 %.
    HeavyTailed,
    /// First-order autoregression with coefficient 0.5 from slot to slot of a case, marginal standard deviation 1 %.
    Autoregressive,
    /// Normal; 15 % of the slots are 10 % slower.
    Bimodal,
    /// Normal; from time to time the whole machine is 5 to 50 % slower, for 8 slots on average, whatever case runs.
    Excursions,
    /// Normal; the machine becomes 20 % slower over the gate.
    Drift,
    /// Normal; each process has a speed of its own, of 0.5 %, in all of its cases.
    Processes,
}

impl Noise {
    /// Every kind, in the order of tables.
    pub(crate) const ALL: [Noise; 7] = [
        Noise::Gaussian,
        Noise::HeavyTailed,
        Noise::Autoregressive,
        Noise::Bimodal,
        Noise::Excursions,
        Noise::Drift,
        Noise::Processes,
    ];

    /// What it is, in a table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Noise::Gaussian => "Gaussian, 1 %",
            Noise::HeavyTailed => "Student's t with 3 degrees of freedom, 1 %",
            Noise::Autoregressive => "AR(1) 0.5, marginal 1 %",
            Noise::Bimodal => "15 % of slots at +10 %",
            Noise::Excursions => "excursions of the machine, +5 to 50 %",
            Noise::Drift => "drift of 20 % over the gate",
            Noise::Processes => "processes with speeds of their own, 0.5 %",
        }
    }
}

/// A machine at work: it times slots, one after the other.
pub(crate) struct Machine {
    noise: Noise,
    rng: Pcg64,
    /// The autoregression of each case.
    states: Vec<f64>,
    slots: u64,
    excursion: f64,
    /// Speeds of this round's processes of base and head.
    processes: [f64; 2],
}

/// Slots over which the drifting machine slows down: about a gate of 200 cases.
const DRIFT_SLOTS: f64 = 5000.0;

impl Machine {
    pub(crate) fn new(noise: Noise, cases: usize, seed: u64) -> Machine {
        let mut rng = Pcg64::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(noise as u64));
        let states = (0..cases).map(|_| normal(&mut rng)).collect();
        Machine { noise, rng, states, slots: 0, excursion: 0.0, processes: [0.0; 2] }
    }

    pub(crate) fn rng(&mut self) -> &mut Pcg64 {
        &mut self.rng
    }

    /// Starts the processes of a round.
    pub(crate) fn start_round(&mut self) {
        if self.noise == Noise::Processes {
            self.processes = [0.005 * normal(&mut self.rng), 0.005 * normal(&mut self.rng)];
        }
    }

    /// The noise of the next slot of time, in which this case runs, as a log time.
    fn slot(&mut self, case: usize) -> f64 {
        self.slots += 1;
        let white = 0.01 * normal(&mut self.rng);
        match self.noise {
            Noise::Gaussian | Noise::Processes => white,
            Noise::HeavyTailed => {
                let squares: f64 = (0..3).map(|_| normal(&mut self.rng).powi(2)).sum();
                white / (squares / 3.0).sqrt() / 3f64.sqrt()
            }
            Noise::Autoregressive => {
                let state = &mut self.states[case];
                *state = 0.5 * *state + 0.75f64.sqrt() * 100.0 * white;
                0.01 * *state
            }
            Noise::Bimodal => white + if self.rng.random::<f64>() < 0.15 { 0.1f64.ln_1p() } else { 0.0 },
            Noise::Excursions => {
                if self.excursion > 0.0 && self.rng.random::<f64>() < 1.0 / 8.0 {
                    self.excursion = 0.0;
                } else if self.excursion == 0.0 && self.rng.random::<f64>() < 0.005 {
                    self.excursion = (0.05 + 0.45 * self.rng.random::<f64>()).ln_1p();
                }
                white + self.excursion
            }
            Noise::Drift => white + 0.2f64.ln_1p() * self.slots as f64 / DRIFT_SLOTS,
        }
    }

    /// Two slots in a row, given to base and head by a coin: head's log time less base's.
    pub(crate) fn pair(&mut self, case: usize) -> f64 {
        let sides = self.processes[1] - self.processes[0];
        sides + self.control_pair(case)
    }

    /// The same for a control, which runs in a process that has no side.
    pub(crate) fn control_pair(&mut self, case: usize) -> f64 {
        let (first, second) = (self.slot(case), self.slot(case));
        if self.rng.random::<bool>() { second - first } else { first - second }
    }
}
