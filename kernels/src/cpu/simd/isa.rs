//! Which instruction sets the machine has, and how a loop is compiled for each of them.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Simd};

/// A loop that is compiled once an instruction set.
///
/// `run` and everything that it calls generically must be `#[inline(always)]`: only code that is inlined into
/// [`Isa::run`]'s entry points gets their instruction set.
pub trait Task {
    /// What it returns.
    type Output;
    /// The loop on vectors of `S`.
    fn run<S: Simd>(self) -> Self::Output;
}

/// Names the widest instruction set that kernels may use, for fleets whose machines differ, and for tools that do not know
/// the widest: `portable`, `avx2` or `avx512`. One that the CPU lacks is no error.
pub const MAX_ISA_VARIABLE: &str = "ATTNBENCH_MAX_ISA";

/// The plainest first, as in [`Isa::available`].
const NAMES: [&str; 3] = ["portable", "avx2", "avx512"];

/// An instruction set that the running CPU has: values come from detection only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every instruction set of this CPU up to that which [`MAX_ISA_VARIABLE`] names, the plainest first; the portable one is
    /// always there.
    ///
    /// # Panics
    /// The variable names none.
    pub fn available() -> Vec<Isa> {
        static CAP: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(MAX_ISA_VARIABLE).ok());
        Isa::up_to(CAP.as_deref().filter(|cap| !cap.is_empty())).unwrap_or_else(|unknown| panic!("{unknown}"))
    }

    /// What [`Isa::available`] finds with a value of the variable.
    ///
    /// # Errors
    /// The value names no instruction set.
    pub fn up_to(cap: Option<&str>) -> Result<Vec<Isa>, String> {
        let mut found = Isa::detected();
        if let Some(cap) = cap {
            let Some(last) = NAMES.iter().position(|name| *name == cap) else {
                return Err(format!("{MAX_ISA_VARIABLE}={cap}: this is none of {}", NAMES.join(", ")));
            };
            found.truncate(last + 1);
        }
        Ok(found)
    }

    fn detected() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            if avx2 {
                found.push(Isa(Kind::Avx2));
            }
            if avx2 && is_x86_feature_detected!("avx512f") {
                found.push(Isa(Kind::Avx512));
            }
        }
        found
    }

    /// The widest of [`Isa::available`].
    pub fn best() -> Isa {
        *Isa::available().last().expect("the portable one is always there")
    }

    /// The widest instruction set of this CPU, whatever the variable says.
    pub fn detected_best() -> Isa {
        *Isa::detected().last().expect("the portable one is always there")
    }

    /// Its name: `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// f32 lanes of a vector.
    pub fn lanes(self) -> usize {
        match self.0 {
            Kind::Portable => Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::LANES,
        }
    }

    /// Columns of a packed panel.
    pub fn panel(self) -> usize {
        match self.0 {
            Kind::Portable => Portable::PANEL_VECTORS * Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::PANEL_VECTORS * Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => Avx512::PANEL_VECTORS * Avx512::LANES,
        }
    }

    /// `n` rounded up to whole vectors.
    pub fn pad(self, n: usize) -> usize {
        n.next_multiple_of(self.lanes())
    }

    /// Runs a loop on this instruction set.
    #[inline]
    pub fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Portable => task.run::<Portable>(),
            // SAFETY: a value of this kind exists only where AVX2, FMA and F16C were detected.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { run_avx2(task) },
            // SAFETY: a value of this kind exists only where AVX-512F and all of the above were detected.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { run_avx512(task) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<T: Task>(task: T) -> T::Output {
    task.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn run_avx512<T: Task>(task: T) -> T::Output {
    task.run::<Avx512>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_takes_away_what_is_wider() {
        let all = Isa::up_to(None).unwrap();
        assert_eq!(Isa::up_to(Some("portable")).unwrap(), all[..1]);
        assert_eq!(Isa::up_to(Some("avx512")).unwrap(), all);
        let up_to_avx2 = Isa::up_to(Some("avx2")).unwrap();
        assert!(up_to_avx2.len() <= 2 && all.starts_with(&up_to_avx2));
        assert!(all.iter().zip(NAMES).all(|(isa, name)| isa.name() == name));
        let error = Isa::up_to(Some("sse9")).unwrap_err();
        assert!(error.contains("ATTNBENCH_MAX_ISA=sse9") && error.contains("portable, avx2, avx512"), "{error}");
    }
}
