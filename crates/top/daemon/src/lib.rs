//! Servers, sites and relays that run until they are stopped.
//!
//! Never: decides what a role, a workflow or the scheduler decides; here they are
//! only joined with disks, networks and processes.
//!
//! Start at [`server`], [`site`] or [`relay`].
#![forbid(unsafe_code)]

mod dialing;
pub mod files;
pub mod logs;
pub mod relay;
pub mod rest;
pub mod server;
pub mod site;
