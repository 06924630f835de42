//! The admin interface: its types and its OpenAPI document.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]
