//! Jobs, their events and their results, in a database and a directory.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]
