//! A client of the admin interface.
#![forbid(unsafe_code)]
