//! Watching one GPU while a worker uses it: readings at both ends of every batch of calls and now and then between.
//!
//! Readings are taken in the coordinator, which has nothing else to do while its worker measures. Samples are timed by
//! events on the GPU, in a queue that holds their launches back, so that a query of the driver does not reach them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::throttle::invalidating;
use super::{Gpu, Moment, Source};
use crate::record::telemetry::{CaseTelemetry, Interval, Reading};

/// How often a throttled GPU is looked at until it runs freely again, and the pause between two looks.
const COOL_DOWN_LOOKS: usize = 20;
const COOL_DOWN_PAUSE: Duration = Duration::from_millis(500);

/// One GPU, as one worker uses it.
pub struct Telemetry {
    gpu: Option<Arc<dyn Gpu>>,
    pid: u32,
    period: Option<Duration>,
    /// What every case of it begins with.
    blank: CaseTelemetry,
    /// Set once the GPU is gone.
    lost: Arc<AtomicBool>,
}

impl Telemetry {
    /// Watches the GPU of that UUID, which the process `pid` uses and has not launched anything on yet. Where it cannot be
    /// watched, everything else works on, and every case's telemetry says why.
    pub fn open(source: &dyn Source, uuid: &str, pid: u32) -> Telemetry {
        let mut blank = CaseTelemetry { gpu_uuid: uuid.to_owned(), source: source.name(), ..CaseTelemetry::default() };
        let gpu = match source.gpu(uuid) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                blank.missing.insert("everything".to_owned(), error.to_string());
                None
            }
        };
        let mut telemetry =
            Telemetry { gpu, pid, period: source.period(), blank, lost: Arc::new(AtomicBool::new(false)) };
        if let Some(gpu) = telemetry.gpu.clone() {
            let idle = telemetry.look(&*gpu, Moment::During);
            telemetry.blank.memory_peak_bytes_per_s = gpu.state().memory_peak_bytes_per_s();
            telemetry.blank.idle_power_w = idle.power_milliwatts.map(|milliwatts| f64::from(milliwatts) / 1000.0);
        }
        telemetry
    }

    /// What the telemetry of a case begins with.
    pub fn case(&self) -> CaseTelemetry {
        self.blank.clone()
    }

    /// Whether there is a GPU that answers.
    pub fn is_watching(&self) -> bool {
        self.gpu.is_some()
    }

    /// Whether the GPU is gone.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn look(&self, gpu: &dyn Gpu, moment: Moment) -> Reading {
        let reading = gpu.read(self.pid, moment);
        if reading.is_lost() {
            self.lost.store(true, Ordering::Relaxed);
        }
        reading
    }

    /// Begins an interval. `None` where the GPU cannot be watched.
    pub fn begin(&self) -> Option<Watch> {
        let gpu = Arc::clone(self.gpu.as_ref()?);
        let first = self.look(&*gpu, Moment::Begin);
        let poll = self.period.map(|period| Poll::start(Arc::clone(&gpu), self.pid, period));
        Some(Watch { gpu, pid: self.pid, lost: Arc::clone(&self.lost), first, poll })
    }

    /// Waits, for some seconds at most, until the GPU is no longer throttled.
    pub fn cool_down(&self) {
        let Some(gpu) = &self.gpu else { return };
        for _ in 0..COOL_DOWN_LOOKS {
            let reading = self.look(&**gpu, Moment::During);
            if invalidating(&[reading]).is_empty() || self.is_lost() {
                return;
            }
            if self.period.is_some() {
                std::thread::sleep(COOL_DOWN_PAUSE);
            }
        }
    }
}

/// An interval that has begun. Dropping it ends it unread.
pub struct Watch {
    gpu: Arc<dyn Gpu>,
    pid: u32,
    lost: Arc<AtomicBool>,
    first: Reading,
    poll: Option<Poll>,
}

impl Watch {
    /// Ends it, and moves what was refused to `case.missing`. The interval is the caller's to keep.
    pub fn end(mut self, case: &mut CaseTelemetry) -> Interval {
        let mut readings = vec![std::mem::take(&mut self.first)];
        readings.extend(self.poll.take().map(Poll::stop).unwrap_or_default());
        readings.push(self.gpu.read(self.pid, Moment::End));
        if readings.iter().any(Reading::is_lost) {
            self.lost.store(true, Ordering::Relaxed);
        }
        let throttled_by = invalidating(&readings);
        let started = readings[0].at_ns;
        for reading in &mut readings {
            reading.at_ns = reading.at_ns.saturating_sub(started);
            for (name, refusal) in std::mem::take(&mut reading.refused) {
                case.missing.insert(name, refusal.to_string());
            }
        }
        Interval { wall_ns: readings[readings.len() - 1].at_ns, throttled_by, readings }
    }
}

/// A thread that takes readings until it is told to stop, or its other end is dropped.
struct Poll {
    stop: Sender<()>,
    thread: JoinHandle<Vec<Reading>>,
}

impl Poll {
    fn start(gpu: Arc<dyn Gpu>, pid: u32, period: Duration) -> Poll {
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut readings = Vec::new();
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                readings.push(gpu.read(pid, Moment::During));
            }
            readings
        });
        Poll { stop, thread }
    }

    fn stop(self) -> Vec<Reading> {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::telemetry::trace::Trace;
    use crate::device::telemetry::{GpuState, NoTelemetry};
    use std::sync::{Condvar, Mutex};

    fn watched(readings: &str) -> (Telemetry, CaseTelemetry) {
        let text = format!(
            "{{\"line\":\"header\",\"trace_version\":1,\"origin\":\"a test\"}}\n\
             {{\"line\":\"gpu\",\"index\":0,\"name\":\"G\",\"uuid\":\"GPU-0\",\"memory_clock_max_mhz\":1000,\
             \"memory_bus_bits\":4096}}\n{readings}"
        );
        let trace = Trace::parse("test", &text).expect("well-formed");
        let telemetry = Telemetry::open(&trace, "GPU-0", 1);
        let case = telemetry.case();
        (telemetry, case)
    }

    #[test]
    fn intervals_have_both_ends_and_their_own_time() {
        let (telemetry, mut case) = watched(
            "{\"line\":\"reading\",\"gpu\":0,\"at_ns\":100,\"power_milliwatts\":70500}\n\
             {\"line\":\"reading\",\"gpu\":0,\"at_ns\":500,\"sm_clock_mhz\":1980,\"throttle_reasons\":4}\n\
             {\"line\":\"reading\",\"gpu\":0,\"at_ns\":900,\"sm_clock_mhz\":1755,\"throttle_reasons\":68,\
             \"refused\":{\"energy_millijoules\":\"no_permission\"}}\n",
        );
        assert_eq!(case.idle_power_w, Some(70.5));
        assert_eq!(case.memory_peak_bytes_per_s, Some(1024e9));
        let interval = telemetry.begin().expect("the trace has it").end(&mut case);
        assert_eq!((interval.wall_ns, interval.readings.len()), (400, 2));
        assert_eq!(interval.throttled_by, ["hardware_thermal_slowdown"]);
        assert!(case.missing["energy_millijoules"].contains("no permission"), "{:?}", case.missing);
        assert!(interval.readings.iter().all(|reading| reading.refused.is_empty()), "said once, not in every reading");
        assert!(!telemetry.is_lost());
    }

    #[test]
    fn a_gpu_that_vanishes_stays_away() {
        let (telemetry, mut case) = watched(
            "{\"line\":\"reading\",\"gpu\":0}\n{\"line\":\"reading\",\"gpu\":0}\n\
             {\"line\":\"reading\",\"gpu\":0,\"refused\":{\"sm_clock_mhz\":\"gpu_lost\"}}\n",
        );
        assert!(!telemetry.is_lost());
        telemetry.begin().expect("the trace has it").end(&mut case);
        assert!(telemetry.is_lost());
        assert!(case.missing["sm_clock_mhz"].contains("lost"));
        telemetry.cool_down();
        assert!(telemetry.is_lost());
    }

    #[test]
    fn a_gpu_that_nobody_knows_is_said_once_and_watched_never() {
        let (_, _) = watched("{\"line\":\"reading\",\"gpu\":0}\n");
        let trace = Trace::parse("test", "{\"line\":\"header\",\"trace_version\":1,\"origin\":\"a test\"}\n").unwrap();
        let telemetry = Telemetry::open(&trace, "GPU-7", 1);
        assert!(telemetry.begin().is_none());
        telemetry.cool_down();
        let said = &telemetry.case().missing["everything"];
        assert!(said.contains("GPU-7"), "{said}");
    }

    /// A GPU that counts how often it was asked.
    #[derive(Default)]
    struct Counted {
        asked: Mutex<Vec<Moment>>,
        changed: Condvar,
    }

    impl Gpu for Arc<Counted> {
        fn state(&self) -> GpuState {
            GpuState::default()
        }
        fn read(&self, _pid: u32, moment: Moment) -> Reading {
            let mut asked = self.asked.lock().unwrap();
            asked.push(moment);
            self.changed.notify_all();
            Reading { at_ns: asked.len() as u64, ..Reading::default() }
        }
    }

    struct Clocked(Arc<Counted>);

    impl Source for Clocked {
        fn name(&self) -> String {
            "clocked".into()
        }
        fn gpus(&self) -> Result<Vec<Arc<dyn Gpu>>, NoTelemetry> {
            Ok(vec![Arc::new(Arc::clone(&self.0))])
        }
        fn gpu(&self, _uuid: &str) -> Result<Arc<dyn Gpu>, NoTelemetry> {
            Ok(Arc::new(Arc::clone(&self.0)))
        }
        fn period(&self) -> Option<Duration> {
            Some(Duration::from_millis(1))
        }
    }

    #[test]
    fn a_real_source_is_read_between_the_ends_and_no_longer_than_that() {
        let gpu = Arc::new(Counted::default());
        let telemetry = Telemetry::open(&Clocked(Arc::clone(&gpu)), "", 1);
        let watch = telemetry.begin().expect("it is there");
        // Opening, the beginning, and three more.
        let asked = gpu.changed.wait_while(gpu.asked.lock().unwrap(), |asked| asked.len() < 5).unwrap();
        drop(asked);
        let interval = watch.end(&mut telemetry.case());
        let asked = gpu.asked.lock().unwrap().clone();
        assert_eq!(interval.readings.len(), asked.len() - 1);
        assert_eq!(asked[..2], [Moment::During, Moment::Begin]);
        assert_eq!(asked.last(), Some(&Moment::End));
        assert!(asked[2..asked.len() - 1].iter().all(|moment| *moment == Moment::During));
        assert_eq!(interval.wall_ns, asked.len() as u64 - 2);
        // A watch that is dropped asks no more: its thread ends with its channel.
        drop(telemetry.begin());
    }
}
