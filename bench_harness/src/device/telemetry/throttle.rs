//! Why a GPU's clocks are lower than they could be, and which of the reasons make a time invalid.
//!
//! Heat, the hardware's own slowdown and the power brake are accidents: the same kernel takes another time a minute later.
//! The software power cap is not: a kernel that keeps its GPU busy runs at that cap, so it is recorded and judged.

use crate::record::telemetry::Reading;

/// A reason, as NVML counts its bits (`nvmlClocksEventReason*` in `nvml.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Its bit.
    pub bit: u64,
    /// Its name in records.
    pub name: &'static str,
    /// Whether samples that were taken under it count for nothing.
    pub invalidates: bool,
}

/// The software power cap.
pub const POWER_CAP: u64 = 0x4;

/// Every reason that NVML knows.
#[rustfmt::skip]
pub const REASONS: &[Reason] = &[
    Reason { bit: 0x1, name: "gpu_idle", invalidates: false },
    Reason { bit: 0x2, name: "applications_clocks", invalidates: false },
    Reason { bit: POWER_CAP, name: "software_power_cap", invalidates: false },
    Reason { bit: 0x8, name: "hardware_slowdown", invalidates: true },
    Reason { bit: 0x10, name: "sync_boost", invalidates: false },
    Reason { bit: 0x20, name: "software_thermal_slowdown", invalidates: true },
    Reason { bit: 0x40, name: "hardware_thermal_slowdown", invalidates: true },
    Reason { bit: 0x80, name: "hardware_power_brake", invalidates: true },
    Reason { bit: 0x100, name: "display_clocks", invalidates: false },
];

/// What made these readings' interval invalid: reasons that any of them shows, and time that heat or the power brake took
/// between them. Nothing where the samples count.
pub fn invalidating(readings: &[Reading]) -> Vec<String> {
    let seen = readings.iter().filter_map(|reading| reading.throttle_reasons).fold(0, |all, mask| all | mask);
    let mut names: Vec<String> = REASONS
        .iter()
        .filter(|reason| reason.invalidates && seen & reason.bit != 0)
        .map(|reason| reason.name.to_owned())
        .collect();
    let mut counters = readings.iter().filter_map(|reading| reading.slowdown_ns);
    let first = counters.next();
    if names.is_empty() && counters.next_back().or(first) > first {
        names.push("heat or power brake between two readings".to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(throttle_reasons: u64, slowdown_ns: u64) -> Reading {
        Reading { throttle_reasons: Some(throttle_reasons), slowdown_ns: Some(slowdown_ns), ..Reading::default() }
    }

    #[test]
    fn only_accidents_invalidate() {
        assert_eq!(invalidating(&[]), Vec::<String>::new());
        assert_eq!(invalidating(&[Reading::default()]), Vec::<String>::new());
        for reason in REASONS {
            let readings = [reading(0, 7), reading(reason.bit | POWER_CAP, 7), reading(0, 7)];
            assert_eq!(!invalidating(&readings).is_empty(), reason.invalidates, "{}", reason.name);
        }
        assert_eq!(invalidating(&[reading(0x60, 0)]), ["software_thermal_slowdown", "hardware_thermal_slowdown"]);
        // A bit that a later driver adds is kept in the record and judged by nobody.
        assert!(invalidating(&[reading(1 << 40, 0)]).is_empty());
    }

    #[test]
    fn a_counter_shows_what_happened_between_readings() {
        assert!(invalidating(&[reading(0, 5), reading(0, 5)]).is_empty());
        assert_eq!(invalidating(&[reading(0, 5), reading(0, 6)]), ["heat or power brake between two readings"]);
        assert_eq!(invalidating(&[reading(0x20, 5), reading(0, 6)]), ["software_thermal_slowdown"]);
        // A driver that was reloaded counts from 0 again.
        assert!(invalidating(&[reading(0, 5), reading(0, 0)]).is_empty());
        assert!(invalidating(&[reading(0, 5)]).is_empty());
    }
}
