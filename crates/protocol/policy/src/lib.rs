//! Who may do what, as a value: roles, rights, and one decision with its reason.
//!
//! Never: reads a certificate, a file or a clock, or allows what no rule allows.
//!
//! Start at [`decide`]; a federation's or a site's own rules are a [`Policy`].
#![deny(clippy::indexing_slicing)]
#![forbid(unsafe_code)]

mod action;
mod role;
mod rules;

pub use action::{Action, Category};
pub use role::{AdminRole, Role};
pub use rules::{Control, Policy, PolicyError, Rule};

/// Who asks: what the certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The certificate's common name.
    pub name: String,
    /// Its organization.
    pub org: String,
    /// Its role.
    pub role: Role,
}

/// What is asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// Name and organization of who submitted the job; absent where no job is
    /// concerned.
    pub submitter: Option<(String, String)>,
    /// The organization of the site or server that is concerned; absent where
    /// it is none, or several.
    pub site_org: Option<String>,
}

impl Resource {
    /// Nothing in particular: a list, a new job.
    pub fn federation() -> Self {
        Self::default()
    }

    /// A job.
    pub fn job(submitter: &str, org: &str) -> Self {
        Self {
            submitter: Some((submitter.to_owned(), org.to_owned())),
            site_org: None,
        }
    }

    /// A site, or the server.
    pub fn site(org: &str) -> Self {
        Self {
            submitter: None,
            site_org: Some(org.to_owned()),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a decision that nobody reads allows everything"]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why, or why not: a sentence for the one who asked and for the audit log.
    pub reason: String,
}

/// What the rules of every federation say that has none of its own
/// ([`Policy::standard`]).
pub fn decide(subject: &Subject, action: Action, resource: &Resource) -> Decision {
    Policy::standard().decide(subject, action, resource)
}
