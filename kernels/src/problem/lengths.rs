//! Lengths of a batch: one for all, a list, or a seeded distribution.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hash::hash64;

/// How the lengths of a ragged batch are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthDistribution {
    /// Every length between the bounds is as likely as any other.
    Uniform,
    /// The logarithm is uniform: many short sequences and a few long ones, as in serving.
    Loguniform,
}

impl LengthDistribution {
    /// Every distribution.
    pub const ALL: [LengthDistribution; 2] = [LengthDistribution::Uniform, LengthDistribution::Loguniform];

    /// The name in case ids.
    pub const fn name(self) -> &'static str {
        match self {
            LengthDistribution::Uniform => "uniform",
            LengthDistribution::Loguniform => "loguniform",
        }
    }
}

/// Lengths of the sequences of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// Every sequence has this length.
    Same(usize),
    /// One length a sequence, as given.
    List(Vec<usize>),
    /// Drawn, with both bounds included.
    Varlen {
        /// How.
        distribution: LengthDistribution,
        /// Smallest length.
        min: usize,
        /// Largest length.
        max: usize,
        /// Seed of the draw.
        seed: u64,
    },
}

impl Lengths {
    /// The lengths of `batch` sequences. A list is returned as it is, whatever `batch` says: validation compares them.
    pub fn expand(&self, batch: usize) -> Vec<usize> {
        match self {
            Lengths::Same(length) => vec![*length; batch],
            Lengths::List(list) => list.clone(),
            Lengths::Varlen { distribution, min, max, seed } => {
                (0..batch).map(|index| draw(*distribution, *min, *max, *seed, index as u64)).collect()
            }
        }
    }

    /// Whether sequences may differ.
    pub fn is_ragged(&self) -> bool {
        !matches!(self, Lengths::Same(_))
    }
}

fn draw(distribution: LengthDistribution, min: usize, max: usize, seed: u64, index: u64) -> usize {
    let unit = (hash64(seed, index) >> 11) as f64 / (1u64 << 53) as f64;
    let length = match distribution {
        LengthDistribution::Uniform => min as f64 + unit * (max - min + 1) as f64,
        LengthDistribution::Loguniform => {
            let (low, high) = (min.max(1) as f64, (max + 1) as f64);
            (low.ln() + unit * (high.ln() - low.ln())).exp()
        }
    };
    (length as usize).clamp(min, max)
}
