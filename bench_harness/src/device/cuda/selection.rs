//! `--device`: on what the built-in kernels run.

use std::str::FromStr;

/// One device that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// By its number in CUDA's order.
    Ordinal(u32),
    /// By `GPU-...` or `MIG-...`, as `nvidia-smi -L` prints them.
    Uuid(String),
}

/// The devices that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// This machine's processor.
    Cpu,
    /// Every CUDA device.
    AllCuda,
    /// These CUDA devices.
    Cuda(Vec<Selected>),
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Selection, String> {
        match text {
            "cpu" => return Ok(Selection::Cpu),
            "all" | "cuda:all" => return Ok(Selection::AllCuda),
            "cuda" => return Ok(Selection::Cuda(vec![Selected::Ordinal(0)])),
            _ => {}
        }
        let expects = "give `cpu`, `cuda:0`, `cuda:0,1`, `all`, or the GPU-... or MIG-... of `nvidia-smi -L`";
        let list = text.strip_prefix("cuda:").unwrap_or(text);
        let mut devices = Vec::new();
        for item in list.split(',') {
            let item = item.strip_prefix("cuda:").unwrap_or(item);
            let device = Selected::parse(item).ok_or_else(|| format!("`{item}` is no device; {expects}"))?;
            if devices.contains(&device) {
                return Err(format!("`{item}` is there twice; {expects}"));
            }
            devices.push(device);
        }
        // A bare number could be meant for anything.
        if !text.starts_with("cuda:") && devices.iter().any(|device| matches!(device, Selected::Ordinal(_))) {
            return Err(format!("`{text}` is no device; {expects}"));
        }
        Ok(Selection::Cuda(devices))
    }
}

impl Selected {
    /// `0`, `GPU-...` or `MIG-...`.
    pub fn parse(text: &str) -> Option<Selected> {
        if let Ok(ordinal) = text.parse::<u32>() {
            // `+1` and `01` parse, and are no device's name.
            return (ordinal.to_string() == text && ordinal < 1024).then_some(Selected::Ordinal(ordinal));
        }
        let is_known = ["GPU-", "MIG-"].into_iter().any(|prefix| text.starts_with(prefix) && text.len() > prefix.len());
        let is_plain = text.len() <= 128 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-/".contains(c));
        (is_known && is_plain).then(|| Selected::Uuid(text.to_owned()))
    }

    /// What [`Selected::parse`] reads.
    pub fn name(&self) -> String {
        match self {
            Selected::Ordinal(ordinal) => ordinal.to_string(),
            Selected::Uuid(uuid) => uuid.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        let ordinals = |list: &[u32]| Selection::Cuda(list.iter().map(|&n| Selected::Ordinal(n)).collect());
        for (text, selection) in [
            ("cpu", Selection::Cpu),
            ("all", Selection::AllCuda),
            ("cuda:all", Selection::AllCuda),
            ("cuda", ordinals(&[0])),
            ("cuda:3", ordinals(&[3])),
            ("cuda:0,1", ordinals(&[0, 1])),
            ("cuda:0,cuda:2", ordinals(&[0, 2])),
            ("MIG-0a1b-2", Selection::Cuda(vec![Selected::Uuid("MIG-0a1b-2".into())])),
        ] {
            assert_eq!(text.parse(), Ok(selection), "{text}");
        }
    }

    #[test]
    fn rubbish_is_refused_with_the_way_out() {
        for text in
            ["", "cuda:", "cuda:-1", "cuda:01", "cuda:0,0", "0", "gpu", "MIG-", "MIG-a b", "cuda:9999", "all,cpu"]
        {
            let error = text.parse::<Selection>().expect_err(text);
            assert!(error.contains("`cuda:0,1`"), "{text}: {error}");
        }
    }
}
