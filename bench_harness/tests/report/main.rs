//! `attnbench report` and `compare --by device` as a user calls them, and the pages in a real browser.

mod browser;
mod files;
mod pages;
#[path = "../support/mod.rs"]
mod support;
