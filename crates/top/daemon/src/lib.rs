//! Servers, sites and relays that run until they are stopped.
#![forbid(unsafe_code)]
