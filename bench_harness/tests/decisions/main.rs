//! Comparisons and gates on simulated machines: how often they cry wolf, what they find, and which exit code follows.

mod exit_codes;
mod machine;
mod paired;
mod pairs;
mod stored;
