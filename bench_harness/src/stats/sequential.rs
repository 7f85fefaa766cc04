//! The sequential probability ratio test (Wald, Sequential Analysis, 1947, chapter 3): is there an effect of a known size,
//! or none, with as few values as the question takes.

/// What values say so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The effect is there.
    Effect,
    /// It is not.
    NoEffect,
    /// More values are needed.
    Open,
}

/// A test of an effect against none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequentialTest {
    effect: f64,
    deviation: f64,
    limit: f64,
}

/// Fewest values of an answer: the first may share a moment of the machine.
pub const FEWEST: usize = 4;
/// Values count no more than what lies so many standard deviations beyond either hypothesis.
const CLIP: f64 = 1.5;
/// The deviation is an estimate from few values, so it is taken to be larger by this factor.
const CAUTION: f64 = 1.25;

impl SequentialTest {
    /// A test of `effect`, which may be negative, in noise of this standard deviation, wrong either way with about the
    /// probability `error`. `None` where one of them is no usable number.
    pub fn new(effect: f64, deviation: f64, error: f64) -> Option<SequentialTest> {
        let usable = effect != 0.0 && effect.is_finite() && deviation.is_finite() && error > 0.0 && error < 0.5;
        // Noise far below the effect would make one value decide, whatever it came from.
        let deviation = (CAUTION * deviation).max(0.1 * effect.abs());
        usable.then(|| SequentialTest { effect, deviation, limit: ((1.0 - error) / error).ln() })
    }

    /// The answer, at the first value at which there is one. Values beyond the hypotheses are clipped: a spike is no proof.
    pub fn answer(&self, values: &[f64]) -> Answer {
        let sign = self.effect.signum();
        let size = self.effect.abs();
        let reach = 0.5 * size + CLIP * self.deviation;
        let mut ratio = 0.0;
        for (count, value) in values.iter().enumerate() {
            let beyond = if value.is_finite() { sign * value - 0.5 * size } else { 0.0 };
            ratio += size / (self.deviation * self.deviation) * beyond.clamp(-reach, reach);
            if count + 1 >= FEWEST && ratio.abs() >= self.limit {
                return if ratio > 0.0 { Answer::Effect } else { Answer::NoEffect };
            }
        }
        Answer::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_pcg::Pcg64;

    #[test]
    fn it_errs_as_rarely_as_it_says_and_soon() {
        let mut rng = Pcg64::seed_from_u64(3);
        // Four uniform values make nearly normal noise of this deviation; one in fifty is a spike either way.
        let mut noise = || {
            let white = (0..4).map(|_| rng.random::<f64>() - 0.5).sum::<f64>() * 3f64.sqrt() * 0.014;
            if rng.random::<f64>() < 0.02 { white + 0.5 * (rng.random::<f64>() - 0.5) } else { white }
        };
        let test = SequentialTest::new(0.05, 0.014, 0.001).unwrap();
        for (truth, wanted) in [(0.05, Answer::Effect), (0.0, Answer::NoEffect)] {
            let (mut wrong, mut taken) = (0, 0);
            for _ in 0..4000 {
                let mut values = Vec::new();
                while test.answer(&values) == Answer::Open {
                    values.push(truth + noise());
                }
                taken += values.len();
                wrong += u32::from(test.answer(&values) != wanted);
            }
            assert!(wrong <= 12, "{wrong} of 4000 are wrong");
            assert!(taken < 4000 * 6, "{taken}");
        }
    }

    #[test]
    fn awkward_values_answer_nothing() {
        assert_eq!(SequentialTest::new(0.0, 0.01, 0.01), None);
        assert_eq!(SequentialTest::new(f64::NAN, 0.01, 0.01), None);
        assert_eq!(SequentialTest::new(0.1, f64::INFINITY, 0.01), None);
        let test = SequentialTest::new(-0.1, 0.0, 0.01).unwrap();
        assert_eq!(test.answer(&[f64::NAN; 100]), Answer::Open);
        assert_eq!(test.answer(&[]), Answer::Open);
        assert_eq!(test.answer(&[-0.1; FEWEST - 1]), Answer::Open);
        assert_eq!(test.answer(&[-0.1; FEWEST]), Answer::Effect);
        assert_eq!(test.answer(&[0.0; FEWEST]), Answer::NoEffect);
    }
}
