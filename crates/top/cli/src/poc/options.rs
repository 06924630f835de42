//! What a deployment is to be like.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::talk::Trouble;

/// What a deployment is to be like.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// The folder; absent: a temporary one.
    pub workspace: Option<PathBuf>,
    /// A project.yml instead of one of our own.
    pub project: Option<PathBuf>,
    /// The sites.
    pub sites: Vec<Site>,
    /// Relays, between the server and the sites in turn.
    pub relays: Vec<String>,
    /// `tcp`, `grpc` or `http`.
    pub scheme: String,
    /// Whose kit submits jobs; absent: the first admin's that may.
    pub username: Option<String>,
    /// The interpreter of the sites' environment.
    pub python: PathBuf,
    /// Additions to its variables.
    pub variables: BTreeMap<String, String>,
}

/// One site.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: BTreeMap<String, String>,
    /// Its GPUs.
    pub gpus: Vec<String>,
}

impl Site {
    /// A site that has nothing.
    pub(super) fn named(name: String) -> Self {
        Self {
            name,
            data: BTreeMap::new(),
            gpus: Vec::new(),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workspace: None,
            project: None,
            sites: Vec::new(),
            relays: Vec::new(),
            scheme: "tcp".to_owned(),
            username: None,
            python: "python3".into(),
            variables: BTreeMap::new(),
        }
    }
}

impl Options {
    /// Reads what `PocEnv` says.
    pub(super) fn parse(text: &str) -> Result<Self, Trouble> {
        let value: Value = serde_json::from_str(text)
            .map_err(|error| Trouble::new(format!("the options are no JSON: {error}"), OLD))?;
        let path = |key: &str| value.get(key).and_then(Value::as_str).map(PathBuf::from);
        let mut sites = Vec::new();
        for (name, own) in value
            .get("sites")
            .and_then(Value::as_object)
            .ok_or_else(bad)?
        {
            sites.push(Site {
                name: name.clone(),
                data: texts(own.get("data"))?,
                gpus: list(own.get("gpus"))?,
            });
        }
        Ok(Self {
            workspace: path("workspace"),
            project: path("project"),
            sites,
            relays: list(value.get("relays"))?,
            scheme: value
                .get("scheme")
                .and_then(Value::as_str)
                .ok_or_else(bad)?
                .to_owned(),
            username: value
                .get("username")
                .and_then(Value::as_str)
                .map(str::to_owned),
            python: path("python").ok_or_else(bad)?,
            variables: texts(value.get("variables"))?,
        })
    }
}

const OLD: &str =
    "the package and the `firesteel` program are of different versions: install the package again";

fn bad() -> Trouble {
    Trouble::new("the options lack something", OLD)
}

fn texts(value: Option<&Value>) -> Result<BTreeMap<String, String>, Trouble> {
    let map = value.and_then(Value::as_object).ok_or_else(bad)?;
    let text = |(key, value): (&String, &Value)| {
        let value = value.as_str().ok_or_else(bad)?;
        Ok((key.clone(), value.to_owned()))
    };
    map.iter().map(text).collect()
}

fn list(value: Option<&Value>) -> Result<Vec<String>, Trouble> {
    let items = value.and_then(Value::as_array).ok_or_else(bad)?;
    let text = |item: &Value| item.as_str().map(str::to_owned).ok_or_else(bad);
    items.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_as_pocenv_writes_them() {
        let text = r#"{"workspace": null, "project": null, "sites": {"lyon": {"data": {"a": "/a"},
            "gpus": ["0"]}, "oslo": {"data": {}, "gpus": []}}, "relays": ["north"], "scheme": "grpc",
            "username": null, "python": "/usr/bin/python3", "variables": {"A": "b"}}"#;
        let options = Options::parse(text).unwrap();
        assert_eq!(options.workspace, None);
        assert_eq!(options.sites.len(), 2);
        assert_eq!(options.sites[0].data["a"], "/a");
        assert_eq!(options.sites[0].gpus, ["0"]);
        assert_eq!((options.scheme.as_str(), options.relays.len()), ("grpc", 1));
        for broken in [
            "",
            "{}",
            "[]",
            &text.replace("\"scheme\"", "\"x\""),
            &text.replace("[\"0\"]", "0"),
        ] {
            assert!(Options::parse(broken).is_err(), "{broken}");
        }
    }
}
