//! FedAvg as people see it.

use super::site::{Presence, Work};
use super::{FedAvg, Stage};
use crate::{JobStage, SiteState, SiteStatus, Status};

impl FedAvg {
    /// Where the job stands, for people.
    pub(super) fn view(&self) -> Status {
        let gathering = matches!(self.stage, Stage::Created | Stage::Gathering);
        let (have, need) = if gathering {
            let here = self.roster.presence_count().here;
            (here, self.config.quorum_start())
        } else {
            let done = self.roster.work_count().done;
            (done, self.config.quorum_round())
        };
        Status {
            stage: match self.stage {
                Stage::Created => JobStage::Created,
                Stage::Gathering => JobStage::Gathering,
                Stage::Open => JobStage::Running,
                Stage::Folding => JobStage::Folding,
                Stage::Ended => JobStage::Ended,
            },
            round: (!gathering).then_some(self.round.number),
            start_round: self.config.start_round,
            total_rounds: self.config.num_rounds,
            since: self.round.opened,
            deadline: self.round.deadline,
            have,
            need,
            sites: (0..self.roster.len())
                .map(|at| SiteStatus {
                    site: self.roster.name(at).clone(),
                    state: self.site_state(at),
                })
                .collect(),
            best: self.best.clone(),
        }
    }

    fn site_state(&self, at: usize) -> SiteState {
        let site = self.roster.site(at);
        if let Some(failure) = &site.excluded {
            return SiteState::Excluded(failure.clone());
        }
        match (&site.work, &site.presence) {
            (Work::Asked { .. }, Presence::Awaited { since }) | (Work::Expected { since }, _) => {
                SiteState::Returning { since: *since }
            }
            (
                Work::Asked {
                    round,
                    stage,
                    since,
                    ..
                },
                _,
            ) => SiteState::Working {
                stage: *stage,
                since: *since,
                round: *round,
            },
            (Work::Done { .. }, _) => SiteState::Contributed,
            (Work::Failed { failure } | Work::Lost { failure }, _) => {
                SiteState::Failed(failure.clone())
            }
            (Work::Late { .. }, _) => SiteState::Late,
            (Work::None, Presence::Here) => SiteState::Ready,
            (Work::None, _) => SiteState::Absent,
        }
    }
}
