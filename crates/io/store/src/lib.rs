//! Where a run lives on a disk: its directory, model files and what is being
//! received, snapshots and the state of its sites.
//!
//! Never: overwrites a model that somebody may still have mapped, leaves a
//! half-written file under a final name, joins a name that a stranger chose
//! into a path, or decides what is kept (the caller says so).
//!
//! Start at [`RunDir`]; a model in flight is a [`ModelObject`], made by
//! [`Objects`] or, from afar, an [`Incoming`] in a [`Spool`]; what outlives the
//! run is in [`KeptModels`].
//! The layout is described in `docs/guides/runs.md`.

#![deny(unsafe_code)]
#![deny(clippy::indexing_slicing)]

mod disk;
mod error;
mod files;
mod kept;
mod mmap;
mod objects;
mod outbox;
mod run;
mod site_state;
mod snapshots;
mod spool;

pub use disk::{
    DiskNeed, DiskPlan, DiskUse, ServerDisk, SiteDisk, Updates, check_disks, check_free,
    disk_needed, server_disk_need, site_disk_need,
};
pub use error::{
    ChangedError, IncomingError, ObjectError, RunError, Shortage, SpaceError, StoreError,
};
pub use files::write_aside;
pub use kept::KeptModels;
pub use objects::{
    Found, Incoming, ModelObject, ObjectId, ObjectReader, Objects, Output, Part, PartName,
    PartProblem, PlainFile, ReceivedFile,
};
pub use outbox::{Outbox, SPARE};
pub use run::{RunDir, RunEntry};
pub use site_state::SiteState;
pub use snapshots::{LoadedSnapshot, Snapshots};
pub use spool::{Admitted, InMemory, LiveReason, Reservation, Spool, SpoolBudget, SpoolError};
