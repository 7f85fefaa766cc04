//! Ctrl-C ends a run cleanly; a second one ends it at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that the first SIGINT or SIGTERM sets. The second one exits with the shell's code for an interrupt.
pub(in crate::commands) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal finds the flag unset and sets it only afterwards.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop)).context("watching for Ctrl-C")?;
        flag::register(signal, Arc::clone(&stop)).context("watching for Ctrl-C")?;
    }
    Ok(stop)
}
