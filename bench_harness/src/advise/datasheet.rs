//! Devices that are not here, by their datasheets: what a roofline needs of them.

use serde::Serialize;

/// A device by its datasheet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Datasheet {
    /// Its name in scenarios.
    pub name: &'static str,
    /// What its driver calls it: a part of the model name.
    pub model: &'static str,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes a second between memory and chip.
    pub bytes_per_s: f64,
    /// Dense 16-bit FLOPs a second.
    pub flops_per_s: f64,
    /// Where the figures are from.
    pub source: &'static str,
}

/// Every device that a scenario can name, besides `this`.
pub const DATASHEETS: &[Datasheet] = &[
    Datasheet {
        name: "h200-sxm",
        model: "H200",
        memory_bytes: 141_000_000_000,
        bytes_per_s: 4.8e12,
        flops_per_s: 989e12,
        source: "NVIDIA H200 datasheet, SXM (bf16 without sparsity)",
    },
    Datasheet {
        name: "h100-sxm",
        model: "H100",
        memory_bytes: 80_000_000_000,
        bytes_per_s: 3.35e12,
        flops_per_s: 989e12,
        source: "NVIDIA H100 datasheet, SXM (bf16 without sparsity)",
    },
    Datasheet {
        name: "a100-80gb-sxm",
        model: "A100",
        memory_bytes: 80_000_000_000,
        bytes_per_s: 2.039e12,
        flops_per_s: 312e12,
        source: "NVIDIA A100 80GB datasheet, SXM (bf16 without sparsity)",
    },
    Datasheet {
        name: "l40s",
        model: "L40S",
        memory_bytes: 48_000_000_000,
        bytes_per_s: 864e9,
        flops_per_s: 362e12,
        source: "NVIDIA L40S datasheet (bf16 without sparsity)",
    },
    Datasheet {
        name: "l4",
        model: "L4",
        memory_bytes: 24_000_000_000,
        bytes_per_s: 300e9,
        flops_per_s: 121e12,
        source: "NVIDIA L4 datasheet (bf16 without sparsity)",
    },
    Datasheet {
        name: "phone-lpddr5x",
        model: "phone",
        memory_bytes: 12_000_000_000,
        bytes_per_s: 68.3e9,
        flops_per_s: 2e12,
        source: "LPDDR5X-8533 on a 64-bit bus: 8533e6 x 8 bytes (JEDEC JESD209-5); 2 TFLOP/s is assumed, no datasheet says it",
    },
];

/// Shares of a datasheet's rates that good kernels sustain: what a prediction multiplies them by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attainable {
    /// Of the bandwidth, reading weights.
    pub weight_bytes: f64,
    /// Of the FLOPs, in large products.
    pub weight_flops: f64,
    /// Of the bandwidth, reading a cache in decode.
    pub attention_bytes: f64,
    /// Of the FLOPs, in attention over long sequences.
    pub attention_flops: f64,
}

/// What was published for Hopper: copies at 4.3 of 4.8 TB/s and large bf16 products at 790 of 989 TFLOP/s on an H200, both
/// taken a little lower; cuDNN's attention at 588 to 702 of 989 TFLOP/s; GQA decode at 1.6 to 1.85 of 3.35 TB/s.
pub const ATTAINABLE: Attainable =
    Attainable { weight_bytes: 0.85, weight_flops: 0.7, attention_bytes: 0.5, attention_flops: 0.6 };

/// The datasheet of that name.
pub fn find(name: &str) -> Option<&'static Datasheet> {
    DATASHEETS.iter().find(|sheet| sheet.name == name)
}
