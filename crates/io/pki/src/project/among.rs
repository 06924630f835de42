//! What must hold among participants: names that differ, one server, relays that
//! lead to it.

use std::collections::{BTreeMap, BTreeSet};

use serde_saphyr::Location;

use super::raw::RawParticipant;
use super::read::Reader;
use super::{Part, Participant, Project, ProjectError, names};

/// What must hold among participants.
#[derive(Default)]
pub(super) struct Names {
    /// Folded, as folders of kits may lie where case is not told apart.
    taken: BTreeSet<String>,
    server: Option<String>,
    lines: BTreeMap<String, Location>,
}

impl Names {
    pub fn know(&mut self, participant: &Participant) {
        self.taken.insert(participant.name.to_lowercase());
        self.taken.insert(participant.identity().to_lowercase());
        if matches!(participant.part, Part::Server(_)) {
            self.server = Some(participant.name.clone());
        }
    }

    pub fn add(
        &mut self,
        reader: &Reader<'_>,
        participant: &Participant,
        raw: &RawParticipant,
        field: &str,
    ) -> Result<(), ProjectError> {
        let here = raw.name.referenced;
        let field = match field {
            "" => "name".to_owned(),
            field => format!("{field}.name"),
        };
        if let (Part::Server(_), Some(first)) = (&participant.part, &self.server) {
            return Err(reader.hinted(
                here,
                field,
                format!(
                    "`{}` would be a second server, beside `{first}`",
                    participant.name
                ),
                "a project has one: its jobs survive a restart, and a stand-by machine takes over \
                 with the same kit and workspace; to be nearer to sites, add relays",
            ));
        }
        for name in [participant.name.as_str(), participant.identity()] {
            if self.taken.contains(&name.to_lowercase()) {
                let problem = format!("`{name}` is the name of another participant");
                return Err(reader.error(here, field, problem));
            }
        }
        self.know(participant);
        self.lines.insert(participant.name.clone(), here);
        Ok(())
    }

    pub fn finish(&self, reader: &Reader<'_>, project: &mut Project) -> Result<(), ProjectError> {
        let line = |name: &str| self.lines.get(name).copied().unwrap_or(Location::UNKNOWN);
        let Some((server, part)) = project.server() else {
            return Err(reader.hinted(
                Location::UNKNOWN,
                "participants",
                "there is no server among them",
                "add one: `{name: server1.example.com, type: server, org: example}`",
            ));
        };
        if names::host(&server.name).is_err() && part.default_host.is_none() {
            return Err(reader.error(
                line(&server.name),
                "participants",
                format!(
                    "the server's name `{}` is no host name, and it has no `default_host`",
                    server.name
                ),
            ));
        }
        let relays: BTreeSet<String> = project
            .participants
            .iter()
            .filter(|participant| matches!(participant.part, Part::Relay(_)))
            .map(|participant| participant.name.clone())
            .collect();
        for participant in &mut project.participants {
            let connect_to = match &mut participant.part {
                Part::Server(_) => continue,
                Part::Site(part) => &mut part.connect_to,
                Part::Relay(part) => &mut part.connect_to,
                Part::Admin(part) => &mut part.connect_to,
            };
            let Some(connect_to) = connect_to else {
                continue;
            };
            // `connect_to: relay-1` alone is read as a host; a relay is meant.
            if connect_to.relay.is_none()
                && let Some(host) = connect_to.host.take_if(|host| relays.contains(host))
            {
                connect_to.relay = Some(host);
            }
            if let Some(relay) = &connect_to.relay
                && !relays.contains(relay)
            {
                let known: Vec<_> = relays.iter().map(|name| format!("`{name}`")).collect();
                let known = match known.as_slice() {
                    [] => "there is no relay in this project".to_owned(),
                    some => format!("the relays are {}", some.join(", ")),
                };
                return Err(reader.error(
                    line(&participant.name),
                    "connect_to.name",
                    format!(
                        "`{relay}`, which `{}` connects to, is no relay: {known}",
                        participant.name
                    ),
                ));
            }
        }
        for relay in &relays {
            let mut passed = vec![relay.clone()];
            let mut at = relay.clone();
            while let Some((participant, _)) = project.relay(&at) {
                let Some(next) = participant.connect_to().and_then(|to| to.relay.clone()) else {
                    break;
                };
                if passed.contains(&next) {
                    passed.push(next);
                    return Err(reader.error(
                        line(relay),
                        "connect_to",
                        format!("these relays connect in a circle: {}", passed.join(" -> ")),
                    ));
                }
                passed.push(next.clone());
                at = next;
            }
        }
        Ok(())
    }
}
