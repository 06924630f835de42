//! Project files, certificates, startup kits and signed job bundles.
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]
