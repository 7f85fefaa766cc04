//! Bencher Metric Format, by the function that writes whole histories in it.

use super::Subject;
use crate::history::export::{WithPoints, bencher_text};
use crate::history::point::{SeriesKey, of_record};
use crate::metric::{Better, find};
use crate::record::Record;
use crate::store::history::{SeriesSummary, StoredPoint};

/// `{case: {metric: {value, lower_value, upper_value}}}`: of a run every metric that has a direction, of a judgement what
/// was compared, as it is on head.
pub fn text(subject: Subject<'_>) -> String {
    let series = match subject {
        Subject::Run(record) => of_run(record),
        Subject::Gate(report) => {
            let compared = report.comparison.cases.iter().flat_map(|case| case.metrics.iter().map(move |m| (case, m)));
            let point = |(case, metric): (&crate::compare::CaseComparison, &crate::compare::MetricComparison)| {
                let better = find(&metric.metric).map_or(Better::None, |known| known.better());
                let suite = &report.comparison.head.suite;
                Some(series(suite, &case.key.to_string(), &metric.metric, better, metric.head?, None))
            };
            compared.filter_map(point).collect()
        }
    };
    bencher_text(&series)
}

fn of_run(record: &Record) -> Vec<WithPoints> {
    let run = of_record(record);
    let ends = |low: Option<f64>, high: Option<f64>| low.zip(high);
    run.points
        .into_iter()
        .map(|point| {
            let SeriesKey { suite, case, metric, .. } = &point.series;
            series(suite, case, metric, point.better, point.value, ends(point.low, point.high))
        })
        .collect()
}

/// A series of one value, which is all that the format has room for.
fn series(suite: &str, case: &str, metric: &str, better: Better, value: f64, ends: Option<(f64, f64)>) -> WithPoints {
    let key = SeriesKey { suite: suite.into(), case: case.into(), metric: metric.into(), machine: String::new() };
    let (low, high) = ends.unzip();
    let point = StoredPoint { run: String::new(), time: String::new(), commit: None, value, low, high };
    (SeriesSummary { key, better, points: 1 }, vec![point])
}
