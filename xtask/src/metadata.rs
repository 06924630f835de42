//! Reads the workspace's crates from `cargo metadata`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::floors::{Need, Room};

/// Every package of the workspace.
pub fn rooms(root: &Path) -> Result<Vec<Room>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root)
        .output()
        .context("cargo metadata could not be started")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    list(&metadata, "packages")?
        .iter()
        .map(|package| room(root, package))
        .collect()
}

fn room(root: &Path, package: &Value) -> Result<Room> {
    let manifest = Path::new(text(package, "manifest_path")?);
    let folder = manifest
        .parent()
        .and_then(|folder| folder.strip_prefix(root).ok())
        .with_context(|| format!("{} lies outside the tree", manifest.display()))?;
    let needs = list(package, "dependencies")?
        .iter()
        .map(|need| {
            Ok(Need {
                package: text(need, "name")?.to_owned(),
                dev: need["kind"] == "dev",
            })
        })
        .collect::<Result<_>>()?;
    Ok(Room {
        package: text(package, "name")?.to_owned(),
        folder: folder.to_string_lossy().replace('\\', "/"),
        needs,
        source: first_file(package)?,
    })
}

/// The text of the crate's library, or of its program where it has no library.
fn first_file(package: &Value) -> Result<String> {
    let targets = list(package, "targets")?;
    let of_kind = |wanted: &[&str]| {
        targets.iter().find(|target| {
            target["kind"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| wanted.iter().any(|w| kind == w)))
        })
    };
    let target = of_kind(&["lib", "cdylib", "rlib"])
        .or_else(|| of_kind(&["bin"]))
        .with_context(|| format!("{} has neither library nor program", package["name"]))?;
    let path = text(target, "src_path")?;
    fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key]
        .as_array()
        .with_context(|| format!("cargo metadata has no list `{key}`"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key]
        .as_str()
        .with_context(|| format!("cargo metadata has no text `{key}`"))
}
