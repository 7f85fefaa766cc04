//! What is derived from a record, one file a metric.
