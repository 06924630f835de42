//! What the server writes down of a job at the end of each round.

use firesteel_base::Time;
use firesteel_flow::{ModelHandle, ModelRole};
use prost::Message;

/// A job between two rounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSnapshot {
    /// The job's clock when it was taken.
    pub clock: Time,
    /// The job's seed.
    pub seed: u64,
    /// The kept models: the handle the workflow knows each by, its role, and the
    /// round that made it.
    pub models: Vec<KeptModel>,
    /// The workflow's own snapshot.
    pub workflow: Vec<u8>,
}

/// A model that outlives a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptModel {
    /// How the workflow knows it.
    pub handle: ModelHandle,
    /// As what it is kept.
    pub role: ModelRole,
    /// The round that made it; `None` for the initial one.
    pub made_in: Option<u32>,
}

/// Why a snapshot was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Damaged, or never one.
    #[error("the snapshot is damaged")]
    Damaged(#[from] prost::DecodeError),
    /// Of a version this build does not read.
    #[error("the snapshot has version {found}, this build reads version {VERSION}")]
    Version {
        /// The snapshot's version.
        found: u32,
    },
    /// A role of a later version.
    #[error("the snapshot keeps a model as `{role}`, which this build does not know")]
    Role {
        /// The role's word.
        role: String,
    },
}

/// The version written by this build.
pub const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct SnapshotMessage {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    clock_micros: u64,
    #[prost(uint64, tag = "3")]
    seed: u64,
    #[prost(message, repeated, tag = "4")]
    models: Vec<KeptMessage>,
    #[prost(bytes = "vec", tag = "5")]
    workflow: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct KeptMessage {
    #[prost(uint64, tag = "1")]
    handle: u64,
    #[prost(string, tag = "2")]
    role: String,
    #[prost(uint32, optional, tag = "3")]
    made_in: Option<u32>,
}

const ROLES: [ModelRole; 3] = [ModelRole::Initial, ModelRole::Latest, ModelRole::Best];

impl JobSnapshot {
    /// The snapshot as bytes.
    pub fn encode(&self) -> Vec<u8> {
        SnapshotMessage {
            version: VERSION,
            clock_micros: self.clock.0,
            seed: self.seed,
            models: self
                .models
                .iter()
                .map(|model| KeptMessage {
                    handle: model.handle.0,
                    role: model.role.as_str().to_owned(),
                    made_in: model.made_in,
                })
                .collect(),
            workflow: self.workflow.clone(),
        }
        .encode_to_vec()
    }

    /// The inverse of [`JobSnapshot::encode`].
    ///
    /// # Errors
    /// [`SnapshotError`], whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let message = SnapshotMessage::decode(bytes)?;
        if message.version != VERSION {
            return Err(SnapshotError::Version {
                found: message.version,
            });
        }
        let models = message.models.into_iter().map(|model| {
            let role = ROLES.into_iter().find(|role| role.as_str() == model.role);
            Ok(KeptModel {
                handle: ModelHandle(model.handle),
                role: role.ok_or(SnapshotError::Role { role: model.role })?,
                made_in: model.made_in,
            })
        });
        Ok(Self {
            clock: Time(message.clock_micros),
            seed: message.seed,
            models: models.collect::<Result<_, SnapshotError>>()?,
            workflow: message.workflow,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_and_another_version_is_refused() {
        let snapshot = JobSnapshot {
            clock: Time(7),
            seed: 9,
            models: vec![KeptModel {
                handle: ModelHandle(3),
                role: ModelRole::Best,
                made_in: Some(2),
            }],
            workflow: vec![1, 2, 3],
        };
        let bytes = snapshot.encode();
        assert_eq!(JobSnapshot::decode(&bytes).unwrap(), snapshot);
        let later = SnapshotMessage {
            version: 2,
            ..Default::default()
        }
        .encode_to_vec();
        assert!(matches!(
            JobSnapshot::decode(&later),
            Err(SnapshotError::Version { found: 2 })
        ));
        assert!(JobSnapshot::decode(&bytes[..3]).is_err());
    }
}
