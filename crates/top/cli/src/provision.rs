//! `firesteel provision`: startup kits from a project file.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use firesteel_pki::project::{Adding, SAMPLE};
use firesteel_pki::provision::{How, next_folder, provision, state_folder};
use firesteel_pki::{Project, Provisioned};
use serde_json::json;

use crate::talk::Trouble;

/// Make a startup kit for everybody who takes part.
#[derive(Debug, Args)]
pub(crate) struct Provision {
    /// The project file.
    #[arg(short, long, default_value = "project.yml", value_name = "FILE")]
    project_file: PathBuf,
    /// Where state and kits of projects lie: the kits in `<project>/prod_NN`.
    #[arg(short, long, default_value = "workspace", value_name = "FOLDER")]
    workspace: PathBuf,
    /// Put the kits into this folder instead; those that are there already are kept.
    #[arg(short, long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Add the admin in this file to those of the project.
    #[arg(long, value_name = "FILE", alias = "add_user")]
    add_user: Vec<PathBuf>,
    /// Add the site or relay in this file to those of the project.
    #[arg(long, value_name = "FILE", alias = "add_client")]
    add_client: Vec<PathBuf>,
    /// Write a project file to start from, and do nothing else.
    #[arg(long, short = 'g', alias = "generate")]
    sample: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) fn run(command: &Provision) -> Result<(), Trouble> {
    if command.sample {
        return sample(&command.project_file);
    }
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|error| {
            Trouble::new(
                format!("could not read `{}`: {error}", path.display()),
                "`firesteel provision --sample` writes a project file to start from",
            )
        })
    };
    let file = &command.project_file;
    let mut project = Project::parse(&read(file)?, file).map_err(|error| Trouble::of(&error))?;
    let users = command.add_user.iter().map(|file| (file, Adding::User));
    let clients = command.add_client.iter().map(|file| (file, Adding::Client));
    for (file, what) in users.chain(clients) {
        project
            .add(&read(file)?, file, what)
            .map_err(|error| Trouble::of(&error))?;
    }
    for warning in &project.warnings {
        eprintln!("warning: {warning}");
    }
    let out = match &command.out {
        Some(out) => out.clone(),
        None => next_folder(&command.workspace, &project).map_err(|error| Trouble::of(&error))?,
    };
    let state = state_folder(&command.workspace, &project);
    let made = provision(&project, &out, &state).map_err(|error| Trouble::of(&error))?;
    show(&made, command.json);
    if !command.json {
        eprintln!(
            "Keep `{}` safe and backed up: it holds the project's authority.",
            state.display()
        );
    }
    Ok(())
}

fn sample(path: &Path) -> Result<(), Trouble> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(SAMPLE.as_bytes()))
        .map_err(|error| {
            Trouble::new(
                format!("could not write `{}`: {error}", path.display()),
                "name a file that is not there: `firesteel provision --sample -p other.yml`",
            )
        })?;
    println!("{}", path.display());
    eprintln!("Edit it, then: firesteel provision -p {}", path.display());
    Ok(())
}

fn how(how: How) -> &'static str {
    match how {
        How::New => "new",
        How::Known => "known",
        How::Kept => "kept",
    }
}

fn show(made: &Provisioned, as_json: bool) {
    if as_json {
        let kits: Vec<_> = made
            .kits
            .iter()
            .map(|kit| {
                json!({
                    "name": kit.name,
                    "role": kit.role.as_str(),
                    "folder": kit.folder,
                    "certificate": how(kit.how),
                })
            })
            .collect();
        println!(
            "{}",
            json!({
                "folder": made.folder,
                "authority_sha256": made.authority_sha256,
                "kits": kits,
            })
        );
        return;
    }
    let width = made
        .kits
        .iter()
        .map(|kit| kit.name.len())
        .max()
        .unwrap_or(0);
    for kit in &made.kits {
        println!(
            "{:width$}  {:13}  {:5}  {}",
            kit.name,
            kit.role.as_str(),
            how(kit.how),
            kit.folder.display()
        );
    }
    eprintln!("authority sha256 {}", made.authority_sha256);
}
