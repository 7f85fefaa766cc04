//! Times of what runs on a stream.
//!
//! A sample is enqueued behind a kernel that holds the stream: stamp, flush, event, work, event, stamp. Then the hold is
//! released, so that the host's microseconds a launch are over before the first event. Where the hold gives up (a full
//! queue blocks the host), the sample is taken again without it and says so. What work leaves behind on other streams shows
//! in the time that the device takes to fall idle after the stream has.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use attn_kernels::cuda::harness;
use cudarc::driver::sys;

use super::compile::Compiler;
use super::context::{Buffer, Context, Pattern};
use super::driver::{Fault, check};
use super::launch::{Code, LoadError, load_module};
use super::module::{Function, LoadedModule};
use crate::clock::elapsed_ns;
use crate::stats::quantile::median;

/// How long a stream is held at most: the host enqueues for microseconds, unless the queue is full.
const HOLD_LIMIT_NS: u64 = 100_000_000;
/// A flush writes this many times the second-level cache.
const FLUSH_CACHES: u64 = 2;
/// Shortest time between two stamps that says something about clocks, since the device's timer may step by a microsecond.
const SHORTEST_STAMPED_NS: f64 = 20_000.0;

/// What a sample took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Nanoseconds between the events around the work.
    pub device_ns: f64,
    /// Nanoseconds on the host's clock from the release of the hold to the end of the stream, without the flush.
    pub wall_ns: f64,
    /// Nanoseconds of the flush.
    pub flush_ns: f64,
    /// Nanoseconds that the rest of the device went on after the stream had ended.
    pub drain_ns: f64,
    /// Nanoseconds that the host took to enqueue the work.
    pub host_ns: f64,
    /// Mean clock of the multiprocessors over flush and work, in MHz.
    pub clock_mhz: Option<f64>,
    /// Whether launch gaps are outside.
    pub is_held: bool,
}

/// How a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Empty the caches before the work.
    pub flush: bool,
    /// Hold the stream until everything is enqueued. Not for a kernel's first launch, which may load code and wait.
    pub hold: bool,
}

/// Clocks and events of a context.
pub struct Timer {
    hold: Function,
    stamp: Function,
    spin: Function,
    words: HostWords,
    /// Before the flush, before the work, after it.
    events: [sys::CUevent; 3],
    stamps: Buffer,
    stamp_blocks: u32,
    flush: Buffer,
    _module: LoadedModule,
}

impl Timer {
    /// Compiles and loads the kernels, and takes the memory that a flush writes.
    pub fn new(context: &Context, compiler: &Compiler) -> Result<Timer, LoadError> {
        let (module, ..) = load_module(&Code::Source(compiler), &harness::timing(), &mut None)?;
        let failed = |fault| LoadError::Driver { what: "the timing kernels".into(), fault };
        let mut events = [std::ptr::null_mut(); 3];
        for event in &mut events {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT as u32;
            // SAFETY: the event is valid for writes, and a context is current.
            check("making an event", unsafe { sys::cuEventCreate(event, flags) }).map_err(failed)?;
        }
        // Twice as many blocks as multiprocessors, so that nearly every one gets a block.
        let stamp_blocks = (2 * context.facts().multiprocessors).max(1);
        let flush_bytes = FLUSH_CACHES * context.device().l2_cache_bytes.max(0) as u64;
        let timer = Timer {
            hold: module.function("hold").map_err(failed)?,
            stamp: module.function("stamp").map_err(failed)?,
            spin: module.function("spin").map_err(failed)?,
            words: HostWords::new().map_err(failed)?,
            events,
            stamps: context.allocate(2 * u64::from(stamp_blocks) * 24).map_err(failed)?,
            stamp_blocks,
            flush: context.allocate(flush_bytes).map_err(failed)?,
            _module: module,
        };
        timer.warm_up(context).map_err(failed)?;
        Ok(timer)
    }

    /// Launches everything of its own once: the driver may load code at a first launch and wait for the device, which would
    /// wait for the hold.
    fn warm_up(&self, context: &Context) -> Result<(), Fault> {
        self.words.release();
        let mut arguments = [vec![self.words.address(0)], vec![self.words.address(1)], vec![HOLD_LIMIT_NS]];
        self.hold.launch(context, [1; 3], [1; 3], 0, &mut arguments)?;
        context.wait()?;
        let how = How { flush: true, hold: false };
        self.attempt(context, how, &mut || Ok(()), &mut || Ok(())).map(|_| ())
    }

    /// Takes a sample of `work`, which enqueues on the context's stream; `ended` is called as soon as that stream has ended.
    pub fn time(
        &self,
        context: &Context,
        how: How,
        work: &mut dyn FnMut() -> Result<(), Fault>,
        ended: &mut dyn FnMut() -> Result<(), Fault>,
    ) -> Result<Timing, Fault> {
        if how.flush {
            // SAFETY: a context is current. Lines that a kernel asked to keep would survive the flush.
            let reset = check("resetting persisting lines", unsafe { sys::cuCtxResetPersistingL2Cache() });
            // Devices before 8.0 and slices have none.
            reset.or_else(|fault| if fault.is_recoverable() { Ok(()) } else { Err(fault) })?;
        }
        let timing = self.attempt(context, how, work, ended)?;
        match timing {
            Some(timing) => Ok(timing),
            None => {
                let timing = self.attempt(context, How { hold: false, ..how }, work, ended)?;
                Ok(timing.expect("only a hold gives up"))
            }
        }
    }

    /// None where the hold gave up.
    fn attempt(
        &self,
        context: &Context,
        how: How,
        work: &mut dyn FnMut() -> Result<(), Fault>,
        ended: &mut dyn FnMut() -> Result<(), Fault>,
    ) -> Result<Option<Timing>, Fault> {
        let Timer { hold, words, events: [begin, start, stop], .. } = self;
        words.clear();
        let mut wall = Instant::now();
        if how.hold {
            let mut arguments = [vec![words.address(0)], vec![words.address(1)], vec![HOLD_LIMIT_NS]];
            hold.launch(context, [1; 3], [1; 3], 0, &mut arguments)?;
        }
        let enqueued = self.enqueue(context, how, work);
        words.release();
        if how.hold {
            wall = Instant::now();
        }
        let host_ns = enqueued?;
        context.wait()?;
        let wall_ns = elapsed_ns(wall) as f64;
        ended()?;
        let draining = Instant::now();
        context.wait_for_all()?;
        let drain_ns = elapsed_ns(draining) as f64;
        if how.hold && words.has_given_up() {
            return Ok(None);
        }
        let flush_ns = between(*begin, *start)?;
        let device_ns = between(*start, *stop)?;
        Ok(Some(Timing {
            device_ns,
            wall_ns: (wall_ns - flush_ns).max(device_ns),
            flush_ns,
            drain_ns,
            host_ns,
            clock_mhz: self.clock_mhz(context)?,
            is_held: how.hold,
        }))
    }

    /// Enqueues a sample, and returns the nanoseconds that the work itself took to enqueue.
    fn enqueue(&self, context: &Context, how: How, work: &mut dyn FnMut() -> Result<(), Fault>) -> Result<f64, Fault> {
        let record = |event| {
            // SAFETY: event and stream are live ones of this context.
            check("recording an event", unsafe { sys::cuEventRecord(event, context.stream()) })
        };
        self.stamp(context, 0)?;
        record(self.events[0])?;
        if how.flush {
            context.fill(&self.flush, Pattern::Byte(0x5a))?;
        }
        record(self.events[1])?;
        let working = Instant::now();
        work()?;
        let host_ns = elapsed_ns(working) as f64;
        record(self.events[2])?;
        self.stamp(context, 1)?;
        Ok(host_ns)
    }

    fn stamp(&self, context: &Context, half: u64) -> Result<(), Fault> {
        let at = self.stamps.address() + half * self.stamps.bytes() / 2;
        self.stamp.launch(context, [self.stamp_blocks, 1, 1], [1; 3], 0, &mut [vec![at]])
    }

    fn clock_mhz(&self, context: &Context) -> Result<Option<f64>, Fault> {
        let mut bytes = vec![0u8; self.stamps.bytes() as usize];
        context.download(&self.stamps, &mut bytes)?;
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of eight"))).collect();
        let (before, after) = words.split_at(words.len() / 2);
        Ok(mean_clock_mhz(before, after))
    }

    /// A kernel that takes this long: what is measured of it is what is wrong with the measuring.
    pub fn enqueue_spin(&self, context: &Context, duration_ns: u64) -> Result<(), Fault> {
        self.spin.launch(context, [1; 3], [1; 3], 0, &mut [vec![duration_ns]])
    }

    /// Bytes of device memory that are the timer's own.
    pub fn bytes(&self) -> u64 {
        self.flush.bytes() + self.stamps.bytes()
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for event in self.events {
            // SAFETY: made by this timer and destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

/// Nanoseconds between two events that have happened.
fn between(from: sys::CUevent, to: sys::CUevent) -> Result<f64, Fault> {
    type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
    // The bindings know only the name that drivers have had since 12.8; the old one is in all of them.
    // SAFETY: `cuda.h` declares the function with this type.
    let elapsed = unsafe { sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0") }.expect("every driver has it");
    let mut milliseconds = 0.0f32;
    // SAFETY: the number is valid for writes, and both events are recorded.
    check("reading an event", unsafe { elapsed(&mut milliseconds, from, to) })?;
    Ok(f64::from(milliseconds) * 1e6)
}

/// The median over multiprocessors of cycles a microsecond, from (multiprocessor, nanoseconds, cycles) of blocks before
/// and after. None where too little time lies between.
fn mean_clock_mhz(before: &[u64], after: &[u64]) -> Option<f64> {
    let mut clocks = Vec::new();
    for first in before.chunks_exact(3) {
        let Some(last) = after.chunks_exact(3).find(|last| last[0] == first[0]) else { continue };
        let (ns, cycles) = (last[1].wrapping_sub(first[1]) as f64, last[2].wrapping_sub(first[2]) as f64);
        if (SHORTEST_STAMPED_NS..1e12).contains(&ns) {
            clocks.push(1e3 * cycles / ns);
        }
    }
    median(&clocks)
}

/// Two words that host and device share: whether the hold is released, and whether it gave up.
struct HostWords {
    words: *mut AtomicU32,
    device: sys::CUdeviceptr,
}

impl HostWords {
    fn new() -> Result<HostWords, Fault> {
        let (mut words, mut device) = (std::ptr::null_mut::<c_void>(), 0);
        let doing = "taking memory that the device sees";
        // SAFETY: both are valid for writes. The flag maps the memory into the device's addresses.
        unsafe {
            check(doing, sys::cuMemHostAlloc(&mut words, 8, sys::CU_MEMHOSTALLOC_DEVICEMAP))?;
            check(doing, sys::cuMemHostGetDevicePointer_v2(&mut device, words, 0))?;
        }
        Ok(HostWords { words: words.cast(), device })
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // SAFETY: there are two words, and both sides access them whole.
        unsafe { &*self.words.add(index) }
    }

    fn address(&self, index: u64) -> u64 {
        self.device + 4 * index
    }

    fn clear(&self) {
        self.word(0).store(0, Ordering::SeqCst);
        self.word(1).store(0, Ordering::SeqCst);
    }

    fn release(&self) {
        self.word(0).store(1, Ordering::SeqCst);
    }

    fn has_given_up(&self) -> bool {
        self.word(1).load(Ordering::SeqCst) != 0
    }
}

impl Drop for HostWords {
    fn drop(&mut self) {
        // SAFETY: taken by `new` and given back once.
        let _ = unsafe { sys::cuMemFreeHost(self.words.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_read_on_one_multiprocessor_each() {
        // Multiprocessor, nanoseconds, cycles. The third has no partner, the fourth too little time.
        let before = [0, 1000, 5_000_000, 1, 1010, 77, 2, 1000, 0, 3, 60_000, 5];
        let after = [1, 101_010, 150_077, 0, 101_000, 5_200_000, 9, 1, 1, 3, 61_000, 1500];
        let clock = mean_clock_mhz(&before, &after).expect("two of them match");
        assert!((clock - 1750.0).abs() < 1e-9, "the median of 2000 and 1500: {clock}");
        assert_eq!(mean_clock_mhz(&before, &[]), None);
    }
}
