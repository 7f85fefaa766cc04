//! Numbers as people read them: three significant digits and a unit. Prefixes are powers of 1000, never of 1024.

/// Prefixes from pico to exa, with their powers of ten.
const PREFIXES: [(i32, &str); 11] = [
    (-12, "p"),
    (-9, "n"),
    (-6, "µ"),
    (-3, "m"),
    (0, ""),
    (3, "k"),
    (6, "M"),
    (9, "G"),
    (12, "T"),
    (15, "P"),
    (18, "E"),
];

/// What stands where there is no number.
pub const NOTHING: &str = "-";

/// Nanoseconds: `1.23 ms`.
pub fn nanoseconds(ns: f64) -> String {
    let seconds = ns * 1e-9;
    if seconds.is_finite() && seconds >= 999.5 { format!("{seconds:.0} s") } else { scaled(seconds, "s", -9) }
}

/// Seconds of something that lasts: `3.2 s`, `4 min 05 s`, `1 h 02 min`.
pub fn duration_s(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return NOTHING.to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// FLOP/s: `45.6 GFLOP/s`.
pub fn flop_per_s(rate: f64) -> String {
    scaled(rate, "FLOP/s", 0)
}

/// Bytes a second: `12.3 GB/s`.
pub fn bytes_per_s(rate: f64) -> String {
    scaled(rate, "B/s", 0)
}

/// Bytes: `1.05 MB`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1000 { format!("{bytes} B") } else { scaled(bytes as f64, "B", 0) }
}

/// A count: `4.19 M`; whole below 1000.
pub fn count(count: u64) -> String {
    if count < 1000 { count.to_string() } else { scaled(count as f64, "", 0).trim_end().to_owned() }
}

/// A share of one: `0.123` is `12.3 %`; whole from 100 % on.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if !percent.is_finite() {
        return NOTHING.to_owned();
    }
    let decimals = if percent.abs() >= 99.95 { 0 } else { 1 };
    format!("{percent:.decimals$} %")
}

/// A relative change with its sign: `+1.2 %`.
pub fn signed_percent(share: f64) -> String {
    let text = percent(share);
    if share >= 0.0 && text != NOTHING { format!("+{text}") } else { text }
}

/// A small figure such as a numerical error: `1.2e-7`.
pub fn scientific(value: f64) -> String {
    match value {
        _ if value.is_nan() => "NaN".to_owned(),
        _ if value.is_infinite() => "inf".to_owned(),
        _ if value == 0.0 => "0".to_owned(),
        _ => format!("{value:.1e}"),
    }
}

/// Three significant digits with no prefix and no exponent where that is short: `45.6`, `123`, `0.0123`.
pub fn three_digits(value: f64) -> String {
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    // The exponent after rounding: 9.996 has three digits as 10.0.
    let rounded = format!("{value:.2e}");
    let exponent: i32 = rounded.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    match exponent {
        ..-4 | 7.. => rounded,
        _ => format!("{value:.*}", (2 - exponent).max(0) as usize),
    }
}

/// Three significant digits with the prefix that leaves one to three of them before the point.
fn scaled(value: f64, unit: &str, smallest: i32) -> String {
    if !value.is_finite() {
        return NOTHING.to_owned();
    }
    if value == 0.0 {
        return format!("0 {unit}");
    }
    let rounded = format!("{value:.2e}");
    let exponent: i32 = rounded.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let power = exponent.div_euclid(3) * 3;
    let (power, prefix) = match PREFIXES.iter().find(|(p, _)| *p == power.clamp(smallest, 18)) {
        Some(&(power, prefix)) => (power, prefix),
        None => (0, ""),
    };
    format!("{} {prefix}{unit}", three_digits(value / 10f64.powi(power)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let rows: &[(String, &str)] = &[
            (nanoseconds(0.0), "0 s"),
            (nanoseconds(0.25), "0.250 ns"),
            (nanoseconds(1.0), "1.00 ns"),
            (nanoseconds(999.6), "1.00 µs"),
            (nanoseconds(12_345.0), "12.3 µs"),
            (nanoseconds(1_234_567.0), "1.23 ms"),
            (nanoseconds(59e9), "59.0 s"),
            (nanoseconds(5_432e9), "5432 s"),
            (nanoseconds(f64::NAN), "-"),
            (flop_per_s(45.6e9), "45.6 GFLOP/s"),
            (flop_per_s(989.5e12), "990 TFLOP/s"),
            (flop_per_s(999.6e9), "1.00 TFLOP/s"),
            (bytes_per_s(3.35e12), "3.35 TB/s"),
            (bytes(0), "0 B"),
            (bytes(999), "999 B"),
            (bytes(1_048_576), "1.05 MB"),
            (bytes(1 << 30), "1.07 GB"),
            (bytes(u64::MAX), "18.4 EB"),
            (count(999), "999"),
            (count(4_194_304), "4.19 M"),
            (percent(0.123), "12.3 %"),
            (percent(0.9996), "100 %"),
            (percent(1.234), "123 %"),
            (percent(f64::INFINITY), "-"),
            (signed_percent(0.012), "+1.2 %"),
            (signed_percent(-0.012), "-1.2 %"),
            (scientific(1.234e-7), "1.2e-7"),
            (scientific(f64::NAN), "NaN"),
            (three_digits(9.996), "10.0"),
            (three_digits(123.4), "123"),
            (three_digits(12_345.0), "12345"),
            (three_digits(-0.01234), "-0.0123"),
            (duration_s(0.04), "0.0 s"),
            (duration_s(245.2), "4 min 05 s"),
            (duration_s(3_720.0), "1 h 02 min"),
        ];
        for (value, expected) in rows {
            assert_eq!(value, expected);
        }
    }
}
