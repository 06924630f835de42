//! Rules, and how they are read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::{Action, AdminRole, Category, Decision, Resource, Subject};

/// Whom a rule means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Everybody of the role: `any`.
    Any,
    /// Nobody: `none`.
    None,
    /// Those of the site's organization: `o:site`.
    SiteOrg,
    /// Those of the submitter's organization: `o:submitter`.
    SubmitterOrg,
    /// The submitter: `n:submitter`.
    Submitter,
    /// Those of this organization: `o:<organization>`.
    Org(String),
    /// This person: `n:<name>`.
    Name(String),
}

/// What a role may do in one respect. What no control allows is not allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// One of these must hold.
    pub allow: Vec<Control>,
    /// And none of these: `not …`.
    pub block: Vec<Control>,
}

/// The rules of a federation, or of a site, for each role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: BTreeMap<(AdminRole, Right), Rule>,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    Everything,
    Category(Category),
    Action(Action),
}

/// Why a rule cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// No such role.
    #[error("`{role}` is no role; the roles are project_admin, org_admin, lead and member")]
    Role {
        /// What was given.
        role: String,
    },
    /// Neither an action nor a category.
    #[error("`{right}` is no right; the rights are {known}")]
    Right {
        /// What was given.
        right: String,
        /// Those there are.
        known: String,
    },
    /// Not a control.
    #[error(
        "`{control}` says nobody; use `any`, `none`, `o:site`, `o:submitter`, `n:submitter`, `o:<organization>` or `n:<name>`, each with `not ` before it to exclude"
    )]
    Control {
        /// What was given.
        control: String,
    },
}

impl Policy {
    /// No rule at all: nothing is allowed.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// The rules of a federation that has none of its own.
    pub fn standard() -> Self {
        use {AdminRole as Role, Category as C, Control as By};
        let mut rules = BTreeMap::new();
        let mut allow = |role, right, control| {
            let rule = Rule {
                allow: vec![control],
                block: Vec::new(),
            };
            rules.insert((role, right), rule);
        };
        allow(Role::ProjectAdmin, Right::Everything, By::Any);

        allow(
            Role::OrgAdmin,
            Right::Category(C::ManageJob),
            By::SubmitterOrg,
        );
        allow(
            Role::OrgAdmin,
            Right::Category(C::DownloadJob),
            By::SubmitterOrg,
        );
        allow(Role::OrgAdmin, Right::Category(C::View), By::Any);
        allow(Role::OrgAdmin, Right::Category(C::Operate), By::SiteOrg);
        allow(
            Role::OrgAdmin,
            Right::Category(C::ShellCommands),
            By::SiteOrg,
        );

        allow(Role::Lead, Right::Action(Action::SubmitJob), By::Any);
        allow(Role::Lead, Right::Action(Action::BringCode), By::Any);
        allow(Role::Lead, Right::Action(Action::CloneJob), By::Submitter);
        allow(Role::Lead, Right::Category(C::ManageJob), By::Submitter);
        allow(Role::Lead, Right::Category(C::DownloadJob), By::Submitter);
        allow(Role::Lead, Right::Category(C::View), By::Any);
        allow(Role::Lead, Right::Category(C::Operate), By::SiteOrg);
        allow(Role::Lead, Right::Category(C::ShellCommands), By::SiteOrg);

        allow(Role::Member, Right::Category(C::View), By::Any);
        Self { rules }
    }

    /// Sets one rule: `right` is an action's or a category's name, or `*` for
    /// everything; `controls` are as in [`Control`].
    ///
    /// # Errors
    /// [`PolicyError`], which names what is not known.
    pub fn set(
        &mut self,
        role: &str,
        right: &str,
        controls: &[impl AsRef<str>],
    ) -> Result<(), PolicyError> {
        let role = AdminRole::parse(role).ok_or_else(|| PolicyError::Role {
            role: role.to_owned(),
        })?;
        let mut rule = Rule::default();
        for text in controls {
            let text = text.as_ref().trim();
            match text.strip_prefix("not ") {
                Some(text) => rule.block.push(Control::parse(text)?),
                None => rule.allow.push(Control::parse(text)?),
            }
        }
        for right in Right::parse(right)? {
            self.rules.insert((role, right), rule.clone());
        }
        Ok(())
    }

    /// Decides. An action's own rule comes before its category's, and that
    /// before the one for everything; without any it is denied.
    pub fn decide(&self, subject: &Subject, action: Action, resource: &Resource) -> Decision {
        let Some(role) = subject.role.admin() else {
            return no(
                subject,
                action,
                "only people have rights, and this is a machine's certificate",
            );
        };
        let rights = [
            Some(Right::Action(action)),
            action.category().map(Right::Category),
            Some(Right::Everything),
        ];
        let rule = rights
            .into_iter()
            .flatten()
            .find_map(|right| self.rules.get(&(role, right)));
        let Some(rule) = rule else {
            return no(
                subject,
                action,
                &format!("no rule gives it to the role {role}"),
            );
        };
        if let Some(control) = rule.block.iter().find(|c| c.holds(subject, resource)) {
            return no(
                subject,
                action,
                &format!("the role's rule excludes {control}"),
            );
        }
        if let Some(control) = rule.allow.iter().find(|c| c.holds(subject, resource)) {
            return Decision {
                allowed: true,
                reason: format!(
                    "{} may {action}: the role's rule allows {control}",
                    who(subject)
                ),
            };
        }
        let allowed: Vec<String> = rule
            .allow
            .iter()
            .map(|control| control.missed(resource))
            .collect();
        let why = match allowed.as_slice() {
            [] => "the role's rule allows nobody".to_owned(),
            some => format!("the role's rule allows {} only", some.join(" or ")),
        };
        no(subject, action, &why)
    }
}

fn who(subject: &Subject) -> String {
    format!("`{}` ({} of `{}`)", subject.name, subject.role, subject.org)
}

fn no(subject: &Subject, action: Action, why: &str) -> Decision {
    Decision {
        allowed: false,
        reason: format!("{} may not {action}: {why}", who(subject)),
    }
}

impl Right {
    /// What a name stands for: `download_job` is an action and a category, and
    /// a rule of that name is for both.
    fn parse(text: &str) -> Result<Vec<Self>, PolicyError> {
        if text == "*" {
            return Ok(vec![Self::Everything]);
        }
        let action = Action::parse(text).map(Self::Action);
        let category = Category::ALL
            .into_iter()
            .find(|category| category.as_str() == text)
            .map(Self::Category);
        let found: Vec<Self> = action.into_iter().chain(category).collect();
        if found.is_empty() {
            let mut known: BTreeSet<&str> = Action::ALL.map(Action::as_str).into();
            known.extend(Category::ALL.map(Category::as_str));
            return Err(PolicyError::Right {
                right: text.to_owned(),
                known: known.into_iter().collect::<Vec<_>>().join(", "),
            });
        }
        Ok(found)
    }
}

impl Control {
    /// Reads one, without `not `.
    ///
    /// # Errors
    /// [`PolicyError::Control`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Ok(match text.trim() {
            "any" | "all" => Self::Any,
            "none" | "no" => Self::None,
            "o:site" => Self::SiteOrg,
            "o:submitter" => Self::SubmitterOrg,
            "n:submitter" => Self::Submitter,
            other => match other.split_once(':') {
                Some(("o", org)) if !org.is_empty() => Self::Org(org.to_owned()),
                Some(("n", name)) if !name.is_empty() => Self::Name(name.to_owned()),
                _ => {
                    return Err(PolicyError::Control {
                        control: other.to_owned(),
                    });
                }
            },
        })
    }

    fn holds(&self, subject: &Subject, resource: &Resource) -> bool {
        // An empty organization is nobody's: two certificates without one do
        // not belong together.
        let same_org = |org: &str| !org.is_empty() && org == subject.org;
        match self {
            Self::Any => true,
            Self::None => false,
            Self::SiteOrg => resource.site_org.as_deref().is_some_and(same_org),
            Self::SubmitterOrg => resource
                .submitter
                .as_ref()
                .is_some_and(|(_, org)| same_org(org)),
            Self::Submitter => resource
                .submitter
                .as_ref()
                .is_some_and(|(name, _)| !name.is_empty() && *name == subject.name),
            Self::Org(org) => same_org(org),
            Self::Name(name) => *name == subject.name,
        }
    }

    /// Whom it means, for one whom it does not mean.
    fn missed(&self, resource: &Resource) -> String {
        match (self, &resource.submitter, &resource.site_org) {
            (Self::SiteOrg, _, Some(org)) => format!("the site's organization, `{org}`,"),
            (Self::SiteOrg, _, None) => {
                "the site's organization, and here is no single site,".to_owned()
            }
            (Self::SubmitterOrg, Some((_, org)), _) => {
                format!("the submitter's organization, `{org}`,")
            }
            (Self::Submitter, Some((name, _)), _) => format!("the submitter, `{name}`,"),
            (Self::SubmitterOrg | Self::Submitter, None, _) => {
                format!("{self}, and here is no job,")
            }
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("everybody of it"),
            Self::None => f.write_str("nobody"),
            Self::SiteOrg => f.write_str("the site's organization"),
            Self::SubmitterOrg => f.write_str("the submitter's organization"),
            Self::Submitter => f.write_str("the submitter"),
            Self::Org(org) => write!(f, "the organization `{org}`"),
            Self::Name(name) => write!(f, "`{name}`"),
        }
    }
}
