//! Checks that keep the house as it is drawn: `cargo xtask floors`, `cargo xtask docs`.
//!
//! Never: changes a file, or needs anything but cargo and the tree.
//!
//! Start at [`floors::violations`] and [`docs::violations`]; each violation is a
//! sentence that says what to do.

#![forbid(unsafe_code)]

mod docs;
mod floors;
mod metadata;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask <command>

  floors   crates depend downwards only, and name only what their floor may
  docs     examples are complete, links resolve, every failure code is explained
  check    both";

fn main() -> ExitCode {
    match run() {
        Ok(violations) if violations.is_empty() => ExitCode::SUCCESS,
        Ok(violations) => {
            for violation in &violations {
                eprintln!("error: {violation}");
            }
            eprintln!("\n{} to mend", violations.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Vec<String>> {
    let root = root()?;
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    if arguments.next().is_some() {
        bail!("too many arguments\n\n{USAGE}");
    }
    match command.as_str() {
        "floors" => check_floors(&root),
        "docs" => check_docs(&root),
        "check" => {
            let mut all = check_floors(&root)?;
            all.extend(check_docs(&root)?);
            Ok(all)
        }
        "" => bail!("no command\n\n{USAGE}"),
        other => bail!("there is no command `{other}`\n\n{USAGE}"),
    }
}

/// The root of the tree: the parent of this crate's folder.
fn root() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .context("xtask has no parent folder")
}

fn check_floors(root: &Path) -> Result<Vec<String>> {
    let rooms = metadata::rooms(root)?;
    let found = floors::violations(&rooms);
    println!("floors: {} crates, {} violations", rooms.len(), found.len());
    Ok(found)
}

fn check_docs(root: &Path) -> Result<Vec<String>> {
    let tree = docs::Tree::read(root)?;
    let found = docs::violations(&tree);
    println!(
        "docs: {} pages, {} examples, {} violations",
        tree.pages.len(),
        tree.examples.len(),
        found.len()
    );
    Ok(found)
}
