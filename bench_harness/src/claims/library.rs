//! The claims that come with the binary.

use super::Claim;
use super::raw::ClaimError;
use crate::suite::Environment;

/// Name and text of a claim's file.
macro_rules! claims {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../suites/claims/", $name, ".toml")))),*]
    };
}

/// Every claim, in the order of the report: dense attention, sparse and linear attention, caches, GPUs.
pub const CLAIMS: &[(&str, &str)] = claims![
    "materialised_time",
    "materialised_memory",
    "flash_speed",
    "flash_memory",
    "flash_same_flops",
    "flash_same_result",
    "window_linear_in_length",
    "window_linear_in_width",
    "longformer_as_stated",
    "longformer_per_token",
    "naive_sparse_slower",
    "bigbird_linear",
    "sparse_transformer_sqrt",
    "linformer_linear",
    "linear_constant_state",
    "gqa_cache",
    "mqa_cache",
    "mla_93_percent",
    "mla_82_percent",
    "mla_98_percent",
    "mistral_window",
    "decode_follows_kv_bytes",
    "gqa_near_mqa",
    "paged_near_contiguous",
    "flash_traffic",
    "flash_speed_a100",
    "flash2_a100_peak",
    "flash3_over_flash2",
    "flash3_h100_peak",
];

/// The claim of that name, or the one in that file.
///
/// # Errors
/// There is none, or it makes no sense.
pub fn load(name: &str, environment: &Environment<'_>) -> Result<Claim, ClaimError> {
    if let Some((name, text)) = CLAIMS.iter().find(|(known, _)| *known == name) {
        return Claim::parse(name, &format!("suites/claims/{name}.toml"), text.as_bytes(), environment);
    }
    let path = std::path::Path::new(name);
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Claim::load(path, environment);
    }
    let known: Vec<&str> = CLAIMS.iter().map(|(known, _)| *known).collect();
    Err(ClaimError {
        file: name.to_owned(),
        message: format!("there is no such claim; name a .toml file, or one of {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_in_the_table_and_makes_sense() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../suites/claims");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                entry.unwrap().file_name().to_str().and_then(|name| name.strip_suffix(".toml")).map(str::to_owned)
            })
            .collect();
        files.sort();
        let mut table: Vec<&str> = CLAIMS.iter().map(|(name, _)| *name).collect();
        table.sort_unstable();
        assert_eq!(files, table);
        for (name, _) in CLAIMS {
            let claim = load(name, &Environment::default()).unwrap_or_else(|error| panic!("{error}"));
            assert!(!claim.expectations.is_empty() && !claim.source.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let error = load("flash_sped", &Environment::default()).unwrap_err().to_string();
        assert!(error.contains("`flash_sped`") && error.contains("flash_speed,"), "{error}");
    }
}
