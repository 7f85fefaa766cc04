//! Amounts of memory and counts as people write them.

/// Units of memory. G is 1e9; the binary ones say so.
const UNITS: [(&str, u128); 11] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("", 1),
];

/// Digits after the point that are still exact in every unit.
const MAX_DECIMALS: usize = 9;

/// Bytes of `80GB`, `1.5 GiB` or `1024`, rounded down to a whole byte.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim());
    let malformed = || format!("`{text}` is no amount of memory; write 80GB, 1.5GiB or a number of bytes");
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, factor)| factor).ok_or_else(malformed)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || whole.len() > 20 || fraction.len() > MAX_DECIMALS || fraction.contains('.') {
        return Err(malformed());
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| malformed())?;
    let bytes = digits.checked_mul(factor).map(|bytes| bytes / scale);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(|| format!("`{text}` is more than {} bytes", u64::MAX))
}

/// A share of a memory, `10%`, or an amount, `8GB`.
pub fn parse_share_or_bytes(text: &str, of_bytes: u64) -> Result<u64, String> {
    let Some(percent) = text.trim().strip_suffix('%') else { return parse_bytes(text) };
    let percent: f64 = percent.trim().parse().map_err(|_| format!("`{text}` is no percentage; write 10%"))?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(format!("`{text}` is no share of a memory; shares lie between 0% and 100%"));
    }
    Ok((of_bytes as f64 * percent / 100.0) as u64)
}
