//! What is submitted: a bundle as it is, or one made of a folder.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use firesteel_base::Hint as _;
use firesteel_pki::bundle::{self, CODE, Draft, SPEC};
use firesteel_session::Session;
use serde_json::Value;

use crate::remote::{Done, Ended};

/// Folders that are made by running code, and are no part of it.
const PASSED_OVER: [&str; 3] = ["__pycache__", ".git", ".venv"];

/// A bundle on the disk.
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    pub(super) key: String,
    made: bool,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.made {
            // It lies in the folder for what nobody needs.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The bundle at `path`, or one of the folder there, signed by the session's kit.
pub(super) fn of(path: &Path, session: &Session, key: Option<&str>) -> Done<Bundle> {
    if !path.is_dir() {
        if !path.is_file() {
            return Err(Ended::here(
                format!("there is no `{}`", path.display()),
                "give the folder that a recipe exported, or a bundle",
            ));
        }
        return Ok(Bundle {
            path: path.to_owned(),
            // The server knows the bundle's own key, too; this one lets an upload
            // that was cut be sent again.
            key: key.map_or_else(random_key, str::to_owned),
            made: false,
        });
    }
    let spec = path.join(SPEC);
    let spec = std::fs::read(&spec).map_err(|error| {
        Ended::here(
            format!("`{}` cannot be read: {error}", spec.display()),
            "a job's folder holds `job.json`, as `recipe.export(…)` writes it",
        )
    })?;
    let mut code = Vec::new();
    let folder = path.join(CODE);
    if folder.is_dir() {
        walk(&folder, "", &mut code)?;
    }
    let initial = initial(&spec, path);
    let draft = Draft {
        project: session.project(),
        spec: &spec,
        code: &code,
        initial: initial.as_deref(),
        submit_key: key,
    };
    let name = format!("firesteel-{}-{}.tar", std::process::id(), random_key());
    let mut made = Bundle {
        path: std::env::temp_dir().join(name),
        key: String::new(),
        made: true,
    };
    let unwritten = |error: std::io::Error| {
        Ended::here(
            format!("the bundle cannot be written: {error}"),
            "TMPDIR names the folder where it is made",
        )
    };
    let file = File::create_new(&made.path).map_err(unwritten)?;
    let mut out = BufWriter::new(file);
    let written = bundle::write(&draft, session.signer(), &mut out).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Ended::here(
            format!("{error}{}", cause.unwrap_or_default()),
            error.hint().unwrap_or_default(),
        )
    })?;
    out.flush().map_err(unwritten)?;
    made.key = written.submit_key;
    Ok(made)
}

/// The initial model that the spec names, when it lies in the folder.
fn initial(spec: &[u8], folder: &Path) -> Option<PathBuf> {
    let spec: Value = serde_json::from_slice(spec).ok()?;
    let path = folder.join(spec.get("initial_model")?.as_str()?);
    path.is_file().then_some(path)
}

fn walk(folder: &Path, below: &str, code: &mut Vec<(String, PathBuf)>) -> Done {
    let unread = |error: std::io::Error| {
        Ended::here(
            format!("`{}` cannot be read: {error}", folder.display()),
            "",
        )
    };
    for entry in std::fs::read_dir(folder).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if PASSED_OVER.contains(&name.as_str()) {
            continue;
        }
        let path = format!("{below}{name}");
        if entry.file_type().map_err(unread)?.is_dir() {
            walk(&entry.path(), &format!("{path}/"), code)?;
        } else {
            code.push((path, entry.path()));
        }
    }
    Ok(())
}

/// A word that nobody else uses: 128 random bits, as far as the standard library
/// gives any.
fn random_key() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let mut key = String::from("cli-");
    for _ in 0..2 {
        // Each is keyed anew by the system's random numbers.
        key.push_str(&format!(
            "{:016x}",
            RandomState::new().hash_one(std::process::id())
        ));
    }
    key
}
