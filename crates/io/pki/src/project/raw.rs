//! The file as it is written.

use std::fmt;
use std::path::Path;

use firesteel_base::limits;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::ProjectError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawProject {
    pub api_version: Spanned<u32>,
    pub name: Spanned<String>,
    #[serde(default)]
    pub description: Option<String>,
    pub participants: Vec<RawParticipant>,
    #[serde(default)]
    pub builders: Option<Vec<RawBuilder>>,
    #[serde(default)]
    pub studies: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub packager: Option<RawBuilder>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawParticipant {
    pub name: Spanned<String>,
    #[serde(default, rename = "type")]
    pub kind: Option<Spanned<String>>,
    pub org: Spanned<String>,
    #[serde(default)]
    pub connection_security: Option<Spanned<String>>,
    #[serde(default)]
    pub custom_ca_cert: Option<Spanned<String>>,
    #[serde(default)]
    pub auth_identity: Option<Spanned<String>>,
    #[serde(default)]
    pub fed_learn_port: Option<Spanned<u16>>,
    #[serde(default)]
    pub admin_port: Option<Spanned<u16>>,
    #[serde(default)]
    pub default_host: Option<Spanned<String>>,
    #[serde(default)]
    pub host_names: Option<Spanned<OneOrMany>>,
    #[serde(default)]
    pub use_aio: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub enable_byoc: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub connect_to: Option<Spanned<RawConnect>>,
    #[serde(default)]
    pub listening_host: Option<Spanned<RawListening>>,
    #[serde(default)]
    pub capacity: Option<Spanned<RawCapacity>>,
    #[serde(default)]
    pub allow_log_streaming: Option<Spanned<bool>>,
    #[serde(default)]
    pub cc_config: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub edge_service_port: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub role: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawBuilder {
    pub path: Spanned<String>,
    #[serde(default)]
    pub args: Option<Spanned<serde_json::Map<String, serde_json::Value>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCapacity {
    #[serde(default)]
    pub num_of_gpus: u32,
    #[serde(default, rename = "mem_per_gpu_in_GiB")]
    pub mem_per_gpu_gib: Option<f64>,
}

/// A host name alone, or a list of them.
#[derive(Debug)]
pub(crate) struct OneOrMany(pub Vec<String>);

/// A host name alone, or fields.
#[derive(Debug, Default)]
pub(crate) struct RawConnect {
    pub name: Option<Spanned<String>>,
    pub host: Option<Spanned<String>>,
    pub port: Option<Spanned<u16>>,
    pub scheme: Option<Spanned<String>>,
    pub connection_security: Option<Spanned<String>>,
    pub auth_identity: Option<Spanned<String>>,
}

/// A host name alone, or fields.
#[derive(Debug, Default)]
pub(crate) struct RawListening {
    pub scheme: Option<Spanned<String>>,
    pub host_names: Option<Spanned<OneOrMany>>,
    pub default_host: Option<Spanned<String>>,
    pub port: Option<Spanned<u16>>,
    pub connection_security: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectFields {
    #[serde(default)]
    name: Option<Spanned<String>>,
    #[serde(default)]
    host: Option<Spanned<String>>,
    #[serde(default)]
    port: Option<Spanned<u16>>,
    #[serde(default)]
    scheme: Option<Spanned<String>>,
    #[serde(default)]
    connection_security: Option<Spanned<String>>,
    #[serde(default)]
    auth_identity: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListeningFields {
    #[serde(default)]
    scheme: Option<Spanned<String>>,
    #[serde(default)]
    host_names: Option<Spanned<OneOrMany>>,
    #[serde(default)]
    default_host: Option<Spanned<String>>,
    #[serde(default)]
    port: Option<Spanned<u16>>,
    #[serde(default)]
    connection_security: Option<Spanned<String>>,
}

fn spanned(text: &str) -> Spanned<String> {
    use serde_saphyr::Location;
    Spanned::new(text.to_owned(), Location::UNKNOWN, Location::UNKNOWN)
}

struct Connects;

impl<'de> Visitor<'de> for Connects {
    type Value = RawConnect;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a host name, or `name`, `host`, `port`, `scheme`, `connection_security` and `auth_identity`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RawConnect, E> {
        Ok(RawConnect {
            host: Some(spanned(text)),
            ..RawConnect::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawConnect, A::Error> {
        let fields = ConnectFields::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(RawConnect {
            name: fields.name,
            host: fields.host,
            port: fields.port,
            scheme: fields.scheme,
            connection_security: fields.connection_security,
            auth_identity: fields.auth_identity,
        })
    }
}

impl<'de> Deserialize<'de> for RawConnect {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Connects)
    }
}

struct Listens;

impl<'de> Visitor<'de> for Listens {
    type Value = RawListening;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a host name, or `scheme`, `host_names`, `default_host`, `port` and `connection_security`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RawListening, E> {
        Ok(RawListening {
            default_host: Some(spanned(text)),
            ..RawListening::default()
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawListening, A::Error> {
        let fields = ListeningFields::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(RawListening {
            scheme: fields.scheme,
            host_names: fields.host_names,
            default_host: fields.default_host,
            port: fields.port,
            connection_security: fields.connection_security,
        })
    }
}

impl<'de> Deserialize<'de> for RawListening {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Listens)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a host name, or a list of them")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
        Ok(OneOrMany(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element()? {
            names.push(name);
        }
        Ok(OneOrMany(names))
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Names)
    }
}

/// Reads YAML; errors name line and field.
pub(super) fn read<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, ProjectError> {
    if text.len() > limits::PROJECT_FILE {
        return Err(ProjectError {
            file: file.to_owned(),
            line: 0,
            field: String::new(),
            problem: format!("it is over {} bytes long", limits::PROJECT_FILE),
            hint: None,
        });
    }
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str(text, |yaml| {
        serde_path_to_error::deserialize(yaml).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    })
    .map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        // A value with a line is a map to who reads it.
        let field = field.replace(".value", "");
        ProjectError {
            file: file.to_owned(),
            line,
            // `?` is where the path is not known yet.
            field: if matches!(field.as_str(), "." | "?") {
                String::new()
            } else {
                field
            },
            problem: sentence(&error),
            hint: None,
        }
    })
}

/// What the reader of YAML says, on one line, without the place, which is named
/// before, and in words that mean something to who wrote the file.
fn sentence(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = match text.split_once(" at line ") {
        Some((said, _)) => said,
        None => text,
    };
    if let Some(key) = text.strip_prefix("duplicate mapping key: ") {
        let key = key.split_once(", set ").map_or(key, |(key, _)| key);
        return format!("`{key}` is there twice");
    }
    match text {
        "invalid u16" => "must be a number from 0 to 65535",
        "invalid u32" => "must be a whole number from 0",
        "invalid boolean" => "must be `true` or `false`",
        "expected string scalar" => "must be a text",
        "expected sequence start" => "must be a list",
        "expected mapping start" => "must hold fields",
        _ if text.starts_with("cannot deserialize null") => "is empty",
        other => other,
    }
    .to_owned()
}
