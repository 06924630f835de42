//! A node between a server and its sites.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]
