//! A node between a server and its sites: carries what it cannot read, and in jobs
//! that say so takes part, by summing the updates of the sites below it.
//!
//! Never: opens a port by itself (sessions are handed to it), runs user code,
//! decides what a round needs, or hands up anything of a single site's update but
//! what the job's hierarchy says.
//!
//! Start at [`tunnel::pass`] for what is carried, and at [`Party::run`] for a job
//! whose updates are summed; whoever connects through a relay starts at [`Uplink`],
//! the server at [`answer_tunnel`] and [`join`]. `docs/specs/relay.md` says what is said to whom.

#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]

pub mod tunnel;

mod join;
mod party;
mod uplink;

pub use join::{answer_tunnel, join};
pub use party::{Party, PartyError, PartyParts};
pub use uplink::{Uplink, UplinkError, scope};
