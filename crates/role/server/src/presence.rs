//! Sites that may lose their connection and come back: what each was asked for,
//! and until when it is waited for.

use std::collections::HashMap;
use std::time::Instant;

use firesteel_base::TaskKey;
use firesteel_wire::control::{Assign, Hello, Key};

/// What is known of the sites that may come back.
///
/// Those that do not (the agents of a simulation) have no entry.
#[derive(Default)]
pub(crate) struct Presence {
    sites: HashMap<usize, Known>,
}

#[derive(Default)]
struct Known {
    /// The agent process that acts for it.
    instance: u64,
    /// What it was asked for and has not answered.
    asked: Option<Assign>,
    /// What it was last told to give up.
    cancelled: Option<Key>,
    /// The newest update of it that was taken.
    taken: Option<TaskKey>,
    /// Its connection is lost, and this is the end of its lease.
    away_until: Option<Instant>,
    /// It said that it is going, or its lease has ended.
    left: bool,
}

/// What a site that has connected needs to be told.
#[derive(Debug, PartialEq)]
pub(crate) enum Welcomed {
    /// It is new, or has lost what it had in hand: the workflow is to be told.
    Anew,
    /// It is as it was; these were said while it was away.
    Back {
        asked: Option<Assign>,
        cancelled: Option<Key>,
    },
}

impl Presence {
    /// A site has connected and said this of itself; `epoch` is the lease's.
    pub(crate) fn joined(&mut self, site: usize, hello: &Hello, epoch: u64) -> Welcomed {
        if hello.instance == 0 {
            self.sites.remove(&site);
            return Welcomed::Anew;
        }
        let known = self.sites.entry(site).or_default();
        let same = known.instance == hello.instance;
        let goes_on = hello.lease_epoch == epoch && !known.left && known.instance != 0;
        known.instance = hello.instance;
        known.away_until = None;
        known.left = false;
        if !goes_on {
            known.asked = None;
            known.cancelled = None;
            return Welcomed::Anew;
        }
        let holds = |key: &Key| hello.holds.contains(key);
        let asked = match known.asked.as_ref().and_then(|asked| asked.key.as_ref()) {
            Some(key) if holds(key) => None,
            // The same agent never got it.
            Some(_) if same => known.asked.clone(),
            // Another one has taken its place, and knows nothing of it.
            Some(_) => {
                known.asked = None;
                return Welcomed::Anew;
            }
            None => None,
        };
        Welcomed::Back {
            asked,
            cancelled: known.cancelled.take().filter(holds),
        }
    }

    /// Whether the site is waited for when its connection is lost.
    pub(crate) fn comes_back(&self, site: usize) -> bool {
        self.sites.get(&site).is_some_and(|known| !known.left)
    }

    /// Its connection is lost.
    pub(crate) fn away(&mut self, site: usize, until: Instant) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.away_until = Some(until);
        }
    }

    /// It has said that it is going.
    pub(crate) fn leaving(&mut self, site: usize) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.left = true;
        }
    }

    /// The sites that are away and whose lease has not ended.
    pub(crate) fn all_away(&self) -> Vec<usize> {
        let away = self.sites.iter();
        away.filter(|(_, known)| known.away_until.is_some() && !known.left)
            .map(|(&site, _)| site)
            .collect()
    }

    /// The sites whose lease has ended; each is named once.
    pub(crate) fn expired(&mut self, now: Instant) -> Vec<usize> {
        let mut gone = Vec::new();
        for (&site, known) in &mut self.sites {
            if known.away_until.take_if(|until| *until <= now).is_some() {
                known.left = true;
                known.asked = None;
                gone.push(site);
            }
        }
        gone.sort_unstable();
        gone
    }

    /// It is asked for this.
    pub(crate) fn asked(&mut self, site: usize, assign: &Assign) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.asked = Some(assign.clone());
        }
    }

    /// What it was asked for has come to an end: it need not be told again.
    pub(crate) fn answered(&mut self, site: usize, key: &TaskKey) {
        if let Some(known) = self.sites.get_mut(&site) {
            let key = Key::from(key);
            known
                .asked
                .take_if(|asked| asked.key.as_ref() == Some(&key));
        }
    }

    /// It is to give this up.
    pub(crate) fn cancelled(&mut self, site: usize, key: &TaskKey) {
        self.answered(site, key);
        if let Some(known) = self.sites.get_mut(&site) {
            known.cancelled = Some(Key::from(key));
        }
    }

    /// Its update was taken. A site that comes back offers it again.
    pub(crate) fn taken(&mut self, site: usize, key: &TaskKey) {
        self.answered(site, key);
        if let Some(known) = self.sites.get_mut(&site) {
            known.taken = Some(key.clone());
        }
    }

    /// Whether this update, or a newer one, was taken already.
    pub(crate) fn has(&self, site: usize, key: &TaskKey) -> bool {
        let taken = self.sites.get(&site).and_then(|known| known.taken.as_ref());
        taken.is_some_and(|taken| (key.round, key.attempt) <= (taken.round, taken.attempt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use firesteel_base::{Attempt, Round, SiteName};
    use std::time::Duration;

    const EPOCH: u64 = 9;

    fn key(round: u32, attempt: u32) -> TaskKey {
        TaskKey {
            round: Round(round),
            site: SiteName::new("a").unwrap(),
            attempt: Attempt(attempt),
        }
    }

    fn hello(instance: u64, lease_epoch: u64, holds: &[TaskKey]) -> Hello {
        Hello {
            instance,
            lease_epoch,
            holds: holds.iter().map(Key::from).collect(),
            ..Hello::default()
        }
    }

    fn assign(key: &TaskKey) -> Assign {
        Assign {
            key: Some(Key::from(key)),
            ..Assign::default()
        }
    }

    fn back(asked: Option<&TaskKey>, cancelled: Option<&TaskKey>) -> Welcomed {
        Welcomed::Back {
            asked: asked.map(assign),
            cancelled: cancelled.map(Key::from),
        }
    }

    /// A site that was asked for the first round and lost its connection.
    fn away() -> Presence {
        let mut presence = Presence::default();
        assert_eq!(presence.joined(0, &hello(5, 0, &[]), EPOCH), Welcomed::Anew);
        presence.asked(0, &assign(&key(0, 0)));
        presence.away(0, Instant::now() + Duration::from_secs(60));
        presence
    }

    #[test]
    fn who_comes_back_is_told_what_it_missed_and_nothing_else() {
        let first = key(0, 0);
        let at = || hello(5, EPOCH, std::slice::from_ref(&first));
        assert_eq!(away().joined(0, &at(), EPOCH), back(None, None));
        // The task was lost with the connection.
        assert_eq!(
            away().joined(0, &hello(5, EPOCH, &[]), EPOCH),
            back(Some(&first), None)
        );
        let mut presence = away();
        presence.cancelled(0, &first);
        assert_eq!(presence.joined(0, &at(), EPOCH), back(None, Some(&first)));
        let mut presence = away();
        presence.cancelled(0, &first);
        assert_eq!(
            presence.joined(0, &hello(5, EPOCH, &[]), EPOCH),
            back(None, None)
        );
    }

    #[test]
    fn another_agent_of_the_site_goes_on_only_with_what_it_holds() {
        let first = key(0, 0);
        let held = hello(6, EPOCH, std::slice::from_ref(&first));
        assert_eq!(away().joined(0, &held, EPOCH), back(None, None));
        assert_eq!(
            away().joined(0, &hello(6, EPOCH, &[]), EPOCH),
            Welcomed::Anew
        );
        // What was done under another server is not done for this one.
        let other = hello(6, EPOCH + 1, std::slice::from_ref(&first));
        assert_eq!(away().joined(0, &other, EPOCH), Welcomed::Anew);
    }

    #[test]
    fn a_lease_ends_once_and_its_site_is_new_afterwards() {
        let mut presence = away();
        let now = Instant::now();
        assert!(presence.expired(now).is_empty());
        assert_eq!(presence.all_away(), [0]);
        let later = now + Duration::from_secs(61);
        assert_eq!(presence.expired(later), [0]);
        assert!(presence.expired(later).is_empty() && presence.all_away().is_empty());
        let hello = hello(5, EPOCH, &[key(0, 0)]);
        assert_eq!(presence.joined(0, &hello, EPOCH), Welcomed::Anew);
    }

    #[test]
    fn an_update_that_was_taken_is_known_again() {
        let mut presence = away();
        presence.taken(0, &key(1, 1));
        for (round, attempt, has) in [
            (0, 7, true),
            (1, 0, true),
            (1, 1, true),
            (1, 2, false),
            (2, 0, false),
        ] {
            assert_eq!(
                presence.has(0, &key(round, attempt)),
                has,
                "{round} {attempt}"
            );
        }
    }

    #[test]
    fn who_cannot_come_back_is_not_waited_for() {
        let mut presence = Presence::default();
        assert_eq!(presence.joined(0, &hello(0, 0, &[]), EPOCH), Welcomed::Anew);
        presence.asked(0, &assign(&key(0, 0)));
        assert!(!presence.comes_back(0));
        assert!(presence.expired(Instant::now()).is_empty());
    }
}
