//! The admin interface over a federation that only remembers what it was asked.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

mod access;
mod common;
mod document;
mod jobs;
mod limits;
mod logs;
mod tokens;
