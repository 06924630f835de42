//! From what is written to what is meant, one participant at a time.

use std::path::Path;

use firesteel_base::SiteName;
use firesteel_policy::AdminRole;
use serde_saphyr::{Location, Spanned};

use super::raw::{OneOrMany, RawConnect, RawListening, RawParticipant, RawProject};
use super::{
    Adding, AdminPart, ConnectTo, ListeningHost, PORT, Part, Participant, ProjectError, RelayPart,
    ServerPart, SitePart, names,
};
use crate::config::{Scheme, Security};

/// Makes errors that name the file.
pub(super) struct Reader<'a> {
    pub file: &'a Path,
}

impl Reader<'_> {
    pub fn error(
        &self,
        location: Location,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> ProjectError {
        ProjectError {
            file: self.file.to_owned(),
            line: location.line(),
            field: field.into(),
            problem: problem.into(),
            hint: None,
        }
    }

    pub fn hinted(
        &self,
        location: Location,
        field: impl Into<String>,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> ProjectError {
        ProjectError {
            hint: Some(hint.into()),
            ..self.error(location, field, problem)
        }
    }

    pub fn version(&self, raw: &RawProject) -> Result<(), ProjectError> {
        if let Some(studies) = &raw.studies {
            return Err(self.hinted(
                studies.referenced,
                "studies",
                "several studies within one project are not supported",
                "make a project of its own for each study: sites may take part in several, each \
                 with another kit",
            ));
        }
        match raw.api_version.value {
            3 | 4 => Ok(()),
            other => Err(self.hinted(
                raw.api_version.referenced,
                "api_version",
                format!("it is {other}, and this Firesteel reads 3 (and 4, without studies)"),
                "`firesteel provision --sample` shows a file of version 3",
            )),
        }
    }

    pub fn participant(
        &self,
        raw: &RawParticipant,
        field: &str,
        adding: Option<Adding>,
        warnings: &mut Vec<String>,
    ) -> Result<Participant, ProjectError> {
        let within = |name: &str| match field {
            "" => name.to_owned(),
            field => format!("{field}.{name}"),
        };
        let here = raw.name.referenced;
        let kind = match (&raw.kind, adding) {
            (Some(kind), _) => kind.value.as_str(),
            (None, Some(Adding::User)) => "admin",
            (None, Some(Adding::Client)) => "client",
            (None, None) => {
                let problem = "is missing; it is `server`, `client`, `relay` or `admin`";
                return Err(self.error(here, within("type"), problem));
            }
        };
        let kind_at = raw.kind.as_ref().map_or(here, |kind| kind.referenced);
        // Before its fields: they cannot be judged without.
        if !["server", "client", "site", "relay", "admin"].contains(&kind) {
            return Err(self.no_such(kind, kind_at, &within("type")));
        }
        let fits = match adding {
            None => true,
            Some(Adding::User) => kind == "admin",
            Some(Adding::Client) => matches!(kind, "client" | "site" | "relay"),
        };
        if !fits {
            let problem = format!("`{kind}` cannot be added in this way");
            let hint = "--add-user takes an admin, --add-client a client or a relay; whatever else \
                        changes belongs into the project file";
            return Err(self.hinted(kind_at, within("type"), problem, hint));
        }
        let applies = |kinds: &[&str], value: Option<Location>, name: &str| match value {
            Some(at) if !kinds.contains(&kind) => Err(self.error(
                at,
                within(name),
                format!(
                    "says nothing of the type {kind}; it is for: {}",
                    kinds.join(", ")
                ),
            )),
            _ => Ok(()),
        };
        const SITE: &[&str] = &["client", "site"];
        const BELOW: &[&str] = &["client", "site", "relay", "admin"];
        const LISTENS: &[&str] = &["client", "site", "relay"];
        const SERVER: &[&str] = &["server"];
        applies(SERVER, at(&raw.fed_learn_port), "fed_learn_port")?;
        applies(SERVER, at(&raw.admin_port), "admin_port")?;
        applies(SERVER, at(&raw.default_host), "default_host")?;
        applies(SERVER, at(&raw.host_names), "host_names")?;
        applies(BELOW, at(&raw.connect_to), "connect_to")?;
        applies(LISTENS, at(&raw.listening_host), "listening_host")?;
        applies(SITE, at(&raw.capacity), "capacity")?;
        applies(SITE, at(&raw.allow_log_streaming), "allow_log_streaming")?;
        applies(&["admin"], at(&raw.role), "role")?;
        if let Some(cc) = &raw.cc_config {
            return Err(self.hinted(
                cc.referenced,
                within("cc_config"),
                "confidential computing is not supported",
                "without the field, the participant gets an ordinary kit",
            ));
        }
        for (ignored, what) in [
            (at(&raw.use_aio), "use_aio"),
            (at(&raw.edge_service_port), "edge_service_port"),
            (at(&raw.enable_byoc), "enable_byoc"),
            // Sites and people are known by their names alone.
            (
                at(&raw.auth_identity).filter(|_| !matches!(kind, "server" | "relay")),
                "auth_identity",
            ),
        ] {
            if let Some(at) = ignored {
                let line = at.line();
                let file = self.file.display();
                warnings.push(format!("{file}:{line}: `{}` has no effect", within(what)));
            }
        }
        let connect_to = match &raw.connect_to {
            Some(raw) => Some(self.connect_to(raw, &within("connect_to"))?),
            None => None,
        };
        let listening = match &raw.listening_host {
            Some(raw) => Some(self.listening(raw, &within("listening_host"))?),
            None => None,
        };
        let part = match kind {
            "server" => Part::Server(ServerPart {
                port: self
                    .port(raw.fed_learn_port.as_ref(), &within("fed_learn_port"))?
                    .unwrap_or(PORT),
                admin_port: self.port(raw.admin_port.as_ref(), &within("admin_port"))?,
                default_host: self.host(raw.default_host.as_ref(), &within("default_host"))?,
                host_names: self.hosts(raw.host_names.as_ref(), &within("host_names"))?,
            }),
            "client" | "site" => {
                let capacity = raw.capacity.as_ref();
                let memory = capacity.and_then(|capacity| capacity.value.mem_per_gpu_gib);
                if let (Some(capacity), Some(gib)) = (capacity, memory)
                    && !(gib.is_finite() && gib >= 0.0)
                {
                    return Err(self.error(
                        capacity.referenced,
                        within("capacity.mem_per_gpu_in_GiB"),
                        "must be a number from 0",
                    ));
                }
                Part::Site(SitePart {
                    connect_to,
                    listening,
                    gpus: capacity.map_or(0, |capacity| capacity.value.num_of_gpus),
                    mem_per_gpu_gib: memory.filter(|gib| *gib > 0.0),
                    allow_log_streaming: raw.allow_log_streaming.as_ref().is_none_or(|on| on.value),
                })
            }
            "relay" => Part::Relay(RelayPart {
                connect_to,
                listening: listening.ok_or_else(|| {
                    self.error(
                        here,
                        within("listening_host"),
                        "is missing: it says under which host and port sites reach the relay",
                    )
                })?,
            }),
            "admin" => {
                let role = raw.role.as_ref().ok_or_else(|| {
                    let problem = "is missing; it is project_admin, org_admin, lead or member";
                    self.error(here, within("role"), problem)
                })?;
                Part::Admin(AdminPart {
                    role: AdminRole::parse(&role.value).ok_or_else(|| {
                        self.error(
                            role.referenced,
                            within("role"),
                            format!(
                                "`{}` is none; the roles are project_admin, org_admin, lead and member",
                                role.value
                            ),
                        )
                    })?,
                    connect_to,
                })
            }
            other => return Err(self.no_such(other, kind_at, &within("type"))),
        };
        let name = names::participant(&raw.name.value, &part)
            .map_err(|problem| self.error(here, within("name"), problem))?;
        let security = match &raw.connection_security {
            Some(text) => self.security(text, &within("connection_security"))?,
            None => Security::default(),
        };
        if let (Some(file), Security::Mtls) = (&raw.custom_ca_cert, security) {
            return Err(self.hinted(
                file.referenced,
                within("custom_ca_cert"),
                "is of a proxy that ends TLS, and `connection_security` is mtls: nobody does",
                "set `connection_security: tls`, or remove it",
            ));
        }
        let org = self.simple(&raw.org, &within("org"))?;
        Ok(Participant {
            name,
            org,
            part,
            security,
            custom_ca: raw
                .custom_ca_cert
                .as_ref()
                .map(|file| file.value.clone().into()),
            auth_identity: self
                .host(raw.auth_identity.as_ref(), &within("auth_identity"))?
                .filter(|_| matches!(kind, "server" | "relay")),
        })
    }

    fn no_such(&self, kind: &str, here: Location, field: &str) -> ProjectError {
        if kind == "overseer" {
            return self.hinted(
                here,
                field,
                "there is no overseer: it chose among several servers, and there is one",
                "remove it: jobs survive a restart of the server, and sites connect again by \
                 themselves",
            );
        }
        let problem = format!("`{kind}` is none; it is `server`, `client`, `relay` or `admin`");
        self.error(here, field, problem)
    }

    fn connect_to(
        &self,
        raw: &Spanned<RawConnect>,
        field: &str,
    ) -> Result<ConnectTo, ProjectError> {
        let within = |name: &str| format!("{field}.{name}");
        let value = &raw.value;
        if let Some(relay) = &value.name {
            SiteName::new(&relay.value)
                .map_err(|error| self.error(relay.referenced, within("name"), error.to_string()))?;
        }
        Ok(ConnectTo {
            relay: value.name.as_ref().map(|name| name.value.clone()),
            host: self.host(value.host.as_ref(), &within("host"))?,
            port: self.port(value.port.as_ref(), &within("port"))?,
            scheme: self.scheme(value.scheme.as_ref(), &within("scheme"))?,
            security: value
                .connection_security
                .as_ref()
                .map(|text| self.security(text, &within("connection_security")))
                .transpose()?,
            auth_identity: self.host(value.auth_identity.as_ref(), &within("auth_identity"))?,
        })
    }

    fn listening(
        &self,
        raw: &Spanned<RawListening>,
        field: &str,
    ) -> Result<ListeningHost, ProjectError> {
        let within = |name: &str| format!("{field}.{name}");
        let value = &raw.value;
        let host_names = self.hosts(value.host_names.as_ref(), &within("host_names"))?;
        let default_host = self
            .host(value.default_host.as_ref(), &within("default_host"))?
            .or_else(|| host_names.first().cloned())
            .ok_or_else(|| {
                let problem = "is missing, and so is `host_names`: one of them must say the host";
                self.error(raw.referenced, within("default_host"), problem)
            })?;
        Ok(ListeningHost {
            scheme: self.scheme(value.scheme.as_ref(), &within("scheme"))?,
            default_host,
            host_names,
            port: self
                .port(value.port.as_ref(), &within("port"))?
                .unwrap_or(PORT),
            security: value
                .connection_security
                .as_ref()
                .map(|text| self.security(text, &within("connection_security")))
                .transpose()?,
        })
    }

    pub fn simple(&self, text: &Spanned<String>, field: &str) -> Result<String, ProjectError> {
        names::simple(&text.value)
            .map_err(|problem| self.error(text.referenced, field, problem))?;
        Ok(text.value.clone())
    }

    fn port(&self, port: Option<&Spanned<u16>>, field: &str) -> Result<Option<u16>, ProjectError> {
        match port {
            Some(port) if port.value == 0 => {
                Err(self.error(port.referenced, field, "must be a port from 1 to 65535"))
            }
            other => Ok(other.map(|port| port.value)),
        }
    }

    fn host(
        &self,
        host: Option<&Spanned<String>>,
        field: &str,
    ) -> Result<Option<String>, ProjectError> {
        let Some(host) = host else {
            return Ok(None);
        };
        names::host(&host.value)
            .map(Some)
            .map_err(|problem| self.error(host.referenced, field, problem))
    }

    fn hosts(
        &self,
        hosts: Option<&Spanned<OneOrMany>>,
        field: &str,
    ) -> Result<Vec<String>, ProjectError> {
        let Some(hosts) = hosts else {
            return Ok(Vec::new());
        };
        let checked = hosts.value.0.iter().map(|host| names::host(host));
        checked
            .collect::<Result<_, _>>()
            .map_err(|problem| self.error(hosts.referenced, field, problem))
    }

    pub fn scheme(
        &self,
        scheme: Option<&Spanned<String>>,
        field: &str,
    ) -> Result<Option<Scheme>, ProjectError> {
        let Some(text) = scheme else {
            return Ok(None);
        };
        match text.value.as_str() {
            "tcp" | "stcp" | "atcp" | "satcp" => Ok(Some(Scheme::Tcp)),
            "grpc" | "grpcs" | "agrpc" | "agrpcs" => Ok(Some(Scheme::Grpc)),
            "http" | "https" | "ws" | "wss" => Ok(Some(Scheme::Http)),
            other => Err(self.error(
                text.referenced,
                field,
                format!("`{other}` is none; the schemes are `tcp`, `grpc` and `http`"),
            )),
        }
    }

    fn security(&self, text: &Spanned<String>, field: &str) -> Result<Security, ProjectError> {
        match text.value.as_str() {
            "mtls" => Ok(Security::Mtls),
            "tls" => Ok(Security::Tls),
            "clear" => Ok(Security::Clear),
            other => Err(self.error(
                text.referenced,
                field,
                format!("`{other}` is none; it is `mtls`, `tls` or `clear`"),
            )),
        }
    }
}

fn at<T>(value: &Option<Spanned<T>>) -> Option<Location> {
    value.as_ref().map(|value| value.referenced)
}
