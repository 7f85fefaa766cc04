//! Records against records: verdicts.

pub mod baseline;

pub use baseline::{Baseline, BaselineError, Session, SessionCase, SessionControl, SessionError};
