//! The formats of `attnbench report` that are one file.

use super::{Subject, annotations, bencher, csv, junit, markdown, openmetrics, sarif, shown};

/// A format of one file.
#[derive(Debug)]
pub struct Format {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its text.
    pub write: fn(Subject<'_>) -> String,
}

/// Every format of one file, those for people first.
pub const FORMATS: &[Format] = &[
    Format { name: "markdown", about: "a pull request's comment, or a job's summary", write: markdown::text },
    Format { name: "annotations", about: "lines that GitHub Actions shows beside a change", write: annotations::text },
    Format { name: "junit", about: "JUnit XML, for any CI server's view of tests", write: junit::text },
    Format { name: "sarif", about: "SARIF 2.1.0, for GitHub's view of code scanning", write: sarif::text },
    Format { name: "csv", about: "a row a case, or a row a compared metric", write: csv::text },
    Format { name: "json", about: "everything, for programs", write: shown::text },
    Format { name: "openmetrics", about: "gauges, for Prometheus and what reads its format", write: openmetrics::text },
    Format { name: "bencher", about: "Bencher Metric Format, for `bencher run --adapter json`", write: bencher::text },
];

/// The format of that name.
pub fn format(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

#[cfg(test)]
mod tests;
