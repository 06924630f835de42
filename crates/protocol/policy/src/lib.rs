//! Who may do what: roles, rights, and one decision.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]
