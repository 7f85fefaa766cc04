//! Measured times of one layer's attention at a few lengths, and what they say between and beyond.

use serde::Serialize;

/// How a time was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// At this very length.
    Measured,
    /// Between two measured lengths, on a straight line of logarithms.
    Interpolated,
    /// From the nearest measured length, in proportion to exact work.
    Extrapolated,
    /// From ceilings that were measured, of what has no measurement.
    Modelled,
    /// From a datasheet.
    Predicted,
}

impl Basis {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Basis::Measured => "measured",
            Basis::Interpolated => "interpolated",
            Basis::Extrapolated => "extrapolated",
            Basis::Modelled => "modelled",
            Basis::Predicted => "predicted",
        }
    }
}

/// A measured length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Tokens.
    pub length: u64,
    /// Nanoseconds of one layer and one sequence: the median.
    pub ns: f64,
    /// Where it is from.
    pub case_id: String,
}

/// Times over lengths, ascending.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    points: Vec<Point>,
}

impl Curve {
    /// A curve through these points.
    pub fn new(mut points: Vec<Point>) -> Curve {
        points.retain(|point| point.ns > 0.0 && point.ns.is_finite() && point.length > 0);
        points.sort_by_key(|point| point.length);
        points.dedup_by_key(|point| point.length);
        Curve { points }
    }

    /// Its points.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Nanoseconds at a length, how they were come by, and the cases behind them. `work` is the exact work at a length,
    /// along which extrapolation goes. None where nothing was measured.
    pub fn at(&self, length: u64, work: impl Fn(u64) -> f64) -> Option<(f64, Basis, Vec<&str>)> {
        let above = self.points.iter().position(|point| point.length >= length);
        match above {
            Some(index) if self.points[index].length == length => {
                let point = &self.points[index];
                Some((point.ns, Basis::Measured, vec![&point.case_id]))
            }
            Some(index) if index > 0 => {
                let (below, above) = (&self.points[index - 1], &self.points[index]);
                let log = |tokens: u64| (tokens as f64).ln();
                let share = (log(length) - log(below.length)) / (log(above.length) - log(below.length));
                let ns = (below.ns.ln() * (1.0 - share) + above.ns.ln() * share).exp();
                Some((ns, Basis::Interpolated, vec![&below.case_id, &above.case_id]))
            }
            _ => {
                let nearest = above.map_or_else(|| self.points.last(), |index| self.points.get(index))?;
                let ratio = work(length) / work(nearest.length);
                Some((nearest.ns * ratio, Basis::Extrapolated, vec![&nearest.case_id]))
            }
        }
    }
}
