//! Who asks, and whether they may.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use firesteel_api::{Code, JobDetail, Person, Problem, SiteInfo};
use firesteel_base::limits;
use firesteel_policy::{Action, Resource, Subject};
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Refusal, no_job, no_site};
use super::router::Inner;

/// Who asks. A route that takes this answers nobody without a token.
pub(super) struct Caller {
    pub(super) subject: Subject,
    pub(super) token: String,
    /// One of the requests that this person may have at a time.
    pub(super) _turn: OwnedSemaphorePermit,
}

impl FromRequestParts<Arc<Inner>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, rest: &Arc<Inner>) -> Result<Self, Refusal> {
        let token = bearer(parts)?;
        let found = rest.tokens().whose(&token, Instant::now());
        let subject = found.ok_or_else(|| {
            Problem::new(
                Code::Unauthenticated,
                "the token is not known here, or has expired",
            )
            .with_hint(
                "log in again; a token is good for an hour, and no longer than the server runs",
            )
        })?;
        let turn = rest.turn(&subject)?;
        Ok(Self {
            subject,
            token,
            _turn: turn,
        })
    }
}

fn bearer(parts: &Parts) -> Result<String, Problem> {
    let missing = || {
        Problem::new(Code::Unauthenticated, "this needs a token").with_hint(
            "POST /v1/login/nonce, sign, POST /v1/login, then send `authorization: Bearer <token>`",
        )
    };
    let value = parts
        .headers
        .get(header::AUTHORIZATION)
        .ok_or_else(missing)?;
    let value = value.to_str().map_err(|_| missing())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > limits::REST_HEADER {
        return Err(missing());
    }
    Ok(token.trim().to_owned())
}

impl Caller {
    /// Asks the policy.
    pub(super) fn may(&self, rest: &Inner, action: Action, on: &Resource) -> Result<(), Problem> {
        let decision = rest.options().policy.decide(&self.subject, action, on);
        if decision.allowed {
            return Ok(());
        }
        let person = &self.subject;
        rest.log().warning(&format!(
            "refused {action} to {} ({} of {}): {}",
            person.name, person.role, person.org, decision.reason
        ));
        Err(Problem::new(Code::Forbidden, decision.reason)
            .with_hint("roles and what each may do: docs/reference/rest.md"))
    }

    fn sees(&self, rest: &Inner, action: Action, on: &Resource) -> bool {
        rest.options()
            .policy
            .decide(&self.subject, action, on)
            .allowed
    }

    /// The job, when the caller may do this with it. Whoever may not even see it
    /// is told that it is not there.
    pub(super) async fn job(
        &self,
        rest: &Inner,
        id: &str,
        action: Action,
    ) -> Result<JobDetail, Refusal> {
        let job = rest.federation().job(id).await?.ok_or_else(|| no_job(id))?;
        let by = &job.summary.submitter;
        let on = Resource::job(&by.name, &by.org);
        if !self.sees(rest, Action::ViewJob, &on) {
            return Err(no_job(id));
        }
        self.may(rest, action, &on)?;
        Ok(job)
    }

    /// The site, when the caller may do this with it.
    pub(super) fn site(
        &self,
        rest: &Inner,
        name: &str,
        action: Action,
    ) -> Result<SiteInfo, Refusal> {
        if !self.sees(rest, Action::ViewStatus, &Resource::federation()) {
            return Err(no_site(name));
        }
        let site = rest.federation().site(name).ok_or_else(|| no_site(name))?;
        self.may(rest, action, &Resource::site(&site.org))?;
        Ok(site)
    }

    /// Notes what was done.
    pub(super) fn done(&self, rest: &Inner, what: &str) {
        let person = &self.subject;
        rest.log().info(&format!(
            "{} ({} of {}) {what}",
            person.name, person.role, person.org
        ));
    }
}

/// A subject as the interface writes it.
pub(super) fn person(subject: &Subject) -> Person {
    Person {
        name: subject.name.clone(),
        org: subject.org.clone(),
        role: subject.role.as_str().to_owned(),
    }
}
