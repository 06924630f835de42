use std::fmt;

/// What a certificate is for: its organizational unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The one server of a federation.
    Server,
    /// A site's agent.
    Site,
    /// A relay between sites and the server.
    Relay,
    /// A person.
    Admin(AdminRole),
}

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AdminRole {
    /// Everything.
    ProjectAdmin,
    /// Operates the sites of one organization, and its jobs.
    OrgAdmin,
    /// Submits jobs and manages their own.
    Lead,
    /// Looks.
    Member,
}

impl AdminRole {
    /// All of them, most powerful first.
    pub const ALL: [Self; 4] = [Self::ProjectAdmin, Self::OrgAdmin, Self::Lead, Self::Member];

    /// As project files and certificates write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProjectAdmin => "project_admin",
            Self::OrgAdmin => "org_admin",
            Self::Lead => "lead",
            Self::Member => "member",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Server,
        Self::Site,
        Self::Relay,
        Self::Admin(AdminRole::ProjectAdmin),
        Self::Admin(AdminRole::OrgAdmin),
        Self::Admin(AdminRole::Lead),
        Self::Admin(AdminRole::Member),
    ];

    /// As certificates write it, in the organizational unit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Site => "site",
            Self::Relay => "relay",
            Self::Admin(role) => role.as_str(),
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// The rights of a person, when it is one.
    pub fn admin(self) -> Option<AdminRole> {
        match self {
            Self::Admin(role) => Some(role),
            _ => None,
        }
    }
}

impl fmt::Display for AdminRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        for other in ["", "admin", "Server", "site ", "client"] {
            assert_eq!(Role::parse(other), None, "{other:?}");
        }
    }
}
