//! A history as Parquet, for data frames and query engines: a row a point, one row group a series, so that a reader of few
//! series skips the rest.

use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;

use super::export::{WithPoints, direction};
use crate::store::history::StoredPoint;

/// The columns, as in the CSV. `time` is text, RFC 3339 in UTC, since imported histories need not have times.
const SCHEMA: &str = "message history {
    required binary suite (STRING);
    required binary case (STRING);
    required binary metric (STRING);
    required binary machine (STRING);
    required binary better (STRING);
    required binary time (STRING);
    optional binary commit (STRING);
    required binary run (STRING);
    required double value;
    optional double low;
    optional double high;
}";

/// The bytes of a Parquet file.
pub(super) fn parquet(series: &[WithPoints]) -> Vec<u8> {
    write(series).expect("writing columns of the schema to memory does not fail")
}

fn write(series: &[WithPoints]) -> Result<Vec<u8>, ParquetError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut file = SerializedFileWriter::new(Vec::new(), schema, properties)?;
    for (summary, points) in series.iter().filter(|(_, points)| !points.is_empty()) {
        let mut group = file.next_row_group()?;
        let key = &summary.key;
        for constant in [&key.suite, &key.case, &key.metric, &key.machine, direction(summary.better)] {
            texts(&mut group, points, |_| Some(constant))?;
        }
        texts(&mut group, points, |point| Some(&point.time))?;
        texts(&mut group, points, |point| point.commit.as_deref())?;
        texts(&mut group, points, |point| Some(&point.run))?;
        numbers(&mut group, points, |point| Some(point.value))?;
        numbers(&mut group, points, |point| point.low)?;
        numbers(&mut group, points, |point| point.high)?;
        group.close()?;
    }
    file.into_inner()
}

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

fn texts<'a>(
    group: &mut Group<'_>,
    points: &'a [StoredPoint],
    of: impl Fn(&'a StoredPoint) -> Option<&'a str>,
) -> Result<(), ParquetError> {
    let values: Vec<ByteArray> = points.iter().filter_map(&of).map(ByteArray::from).collect();
    let levels: Vec<i16> = points.iter().map(|point| i16::from(of(point).is_some())).collect();
    let mut column = group.next_column()?.expect("as many as the schema has");
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)?;
    column.close()
}

fn numbers(
    group: &mut Group<'_>,
    points: &[StoredPoint],
    of: impl Fn(&StoredPoint) -> Option<f64>,
) -> Result<(), ParquetError> {
    let values: Vec<f64> = points.iter().filter_map(&of).collect();
    let levels: Vec<i16> = points.iter().map(|point| i16::from(of(point).is_some())).collect();
    let mut column = group.next_column()?.expect("as many as the schema has");
    column.typed::<DoubleType>().write_batch(&values, Some(&levels), None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::RowAccessor;

    use super::super::point::SeriesKey;
    use super::*;
    use crate::metric::Better;
    use crate::store::history::SeriesSummary;

    fn series(case: &str, values: &[f64]) -> WithPoints {
        let [suite, metric, machine] = ["ci", "latency_ns_median", "abc"].map(str::to_owned);
        let key = SeriesKey { suite, case: case.to_owned(), metric, machine };
        let point = |(number, &value): (usize, &f64)| StoredPoint {
            run: format!("run {number}"),
            time: "2026-01-01T00:00:00Z".into(),
            commit: (number % 2 == 0).then(|| format!("{number:040x}")),
            value,
            low: (number % 3 == 0).then_some(value - 0.5),
            high: None,
        };
        let points: Vec<StoredPoint> = values.iter().enumerate().map(point).collect();
        (SeriesSummary { key, better: Better::Lower, points: points.len() as u64 }, points)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long: Vec<f64> = (0..3000).map(|number| f64::from(number).sqrt()).collect();
        let all = [series("a,\"b\"\n<ü>", &long), series("empty", &[]), series("c", &[f64::MIN_POSITIVE, 1e300])];
        let reader = SerializedFileReader::new(bytes::Bytes::from(parquet(&all))).expect("a Parquet file");
        assert_eq!(reader.num_row_groups(), 2);
        let mut rows = reader.get_row_iter(None).expect("rows");
        for (summary, points) in &all {
            for point in points {
                let row = rows.next().expect("a row").expect("readable");
                assert_eq!(row.get_string(1).unwrap(), &summary.key.case);
                assert_eq!(row.get_string(4).unwrap(), "lower");
                assert_eq!(row.get_string(6).ok(), point.commit.as_ref());
                assert_eq!(row.get_string(7).unwrap(), &point.run);
                assert_eq!(row.get_double(8).unwrap(), point.value);
                assert_eq!((row.get_double(9).ok(), row.get_double(10).ok()), (point.low, None));
            }
        }
        assert!(rows.next().is_none());
        let none = SerializedFileReader::new(bytes::Bytes::from(parquet(&[]))).expect("a Parquet file");
        assert_eq!(none.metadata().file_metadata().num_rows(), 0);
    }
}
