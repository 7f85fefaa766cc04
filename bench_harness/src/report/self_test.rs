//! What the self-test of timing found, as text.

use super::printable;
use crate::device::cuda::self_test::SelfTest;

/// A paragraph a device.
pub fn text(tests: &[SelfTest], tolerance: f64) -> String {
    let mut lines = Vec::new();
    for (number, test) in tests.iter().enumerate() {
        let verdict = if test.pass { "pass" } else { "FAIL" };
        lines.push(format!("cuda:{number} {}: {verdict}", printable(&test.device)));
        for &(asked, measured) in &test.spins_ns {
            let off = 100.0 * (measured / asked as f64 - 1.0);
            lines.push(format!("  a kernel of {asked} ns was measured as {measured:.0} ns ({off:+.2} %)"));
        }
        lines.push(format!("  nothing was measured as {:.0} ns", test.empty_ns));
        if let Some(mhz) = test.clock_mhz {
            lines.push(format!("  clock of the multiprocessors {mhz:.0} MHz"));
        }
        if test.unheld > 0 {
            lines.push(format!("  {} samples whose queue could not be held", test.unheld));
        }
        lines.push(format!("  tolerance {:.0} %", 100.0 * tolerance));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_fails_says_by_how_much() {
        let test = SelfTest {
            device: "Example GPU".into(),
            spins_ns: vec![(200_000, 201_000.0), (1_000_000, 1_050_000.0)],
            empty_ns: 1520.0,
            clock_mhz: Some(1755.2),
            unheld: 1,
            pass: false,
        };
        let expected = "cuda:0 Example GPU: FAIL\n  \
            a kernel of 200000 ns was measured as 201000 ns (+0.50 %)\n  \
            a kernel of 1000000 ns was measured as 1050000 ns (+5.00 %)\n  \
            nothing was measured as 1520 ns\n  \
            clock of the multiprocessors 1755 MHz\n  \
            1 samples whose queue could not be held\n  \
            tolerance 1 %\n";
        assert_eq!(text(&[test], 0.01), expected);
    }
}
