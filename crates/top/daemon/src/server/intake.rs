//! Jobs on their way in: unpacked, checked, and given an id and a place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use firesteel_api::job::Submitted;
use firesteel_api::{EventKind, JobState, Problem, problem::Code};
use firesteel_base::{Hint, JobId, Moment, limits};
use firesteel_jobs::{Change, JobsError, NewJob};
use firesteel_node::parts::{random, sentence};
use firesteel_pki::bundle::{self, Bundle, Limits};
use firesteel_policy::{Action, Resource, Subject};
use firesteel_wire::spec::JobSpec;

use super::core::Input;
use super::hub::internal;
use super::journal;
use super::record::{Record, micros};
use super::shared::Shared;

/// The bundle as it was submitted.
pub(crate) const BUNDLE: &str = "bundle.tar";
/// The same as sites get it.
pub(crate) const FOR_SITES: &str = "sites.tar";
/// The bundle, unpacked.
pub(crate) const UNPACKED: &str = "unpacked";

/// A job that was checked and whose files are together, still in the folder of
/// what is on its way in.
struct Prepared {
    dir: PathBuf,
    spec: JobSpec,
    text: String,
    length: u64,
    sha256: Vec<u8>,
}

/// Who submits what, and from where it was cloned.
pub(crate) struct Submission {
    pub(crate) file: PathBuf,
    pub(crate) by: Subject,
    pub(crate) key: Option<String>,
    pub(crate) cloned_from: Option<JobId>,
}

/// Takes a job in.
pub(crate) async fn submit(shared: &Shared, given: Submission) -> Result<Submitted, Problem> {
    let Submission {
        file,
        by,
        key,
        cloned_from,
    } = given;
    let action = match cloned_from {
        None => Action::SubmitJob,
        Some(_) => Action::CloneJob,
    };
    let decision = shared
        .policy
        .decide(&by, action, &Resource::job(&by.name, &by.org));
    if !decision.allowed {
        return Err(Problem::new(Code::Forbidden, decision.reason));
    }
    if key
        .as_ref()
        .is_some_and(|key| key.len() > limits::SUBMIT_KEY || key.is_empty())
    {
        let text = format!("a submit key has 1 to {} bytes", limits::SUBMIT_KEY);
        return Err(Problem::new(Code::Invalid, text).with_field("key"));
    }
    let id = make_id();
    let (incoming, authority) = (shared.jobs.incoming_dir(), shared.authority.clone());
    let checked = {
        let (id, project, by) = (id.clone(), shared.project.clone(), by.clone());
        let same = cloned_from.is_none();
        tokio::task::spawn_blocking(move || {
            let dir = incoming.join(format!("{id}.new"));
            let prepared = prepare(
                &dir,
                &file,
                |bundle| {
                    if bundle.project != project {
                        return Err(refused(format!(
                            "the bundle is for the project `{}`, this server serves `{project}`",
                            bundle.project
                        )));
                    }
                    if same && (bundle.submitter.name != by.name || bundle.submitter.org != by.org)
                    {
                        return Err(refused(format!(
                            "the bundle is signed by `{}` of `{}`, but submitted by `{}` of `{}`",
                            bundle.submitter.name, bundle.submitter.org, by.name, by.org
                        ))
                        .with_hint("sign it with the kit that you submit it with"));
                    }
                    Ok(())
                },
                &authority,
            );
            if prepared.is_err() {
                // What is left is swept away at the next start.
                let _ = fs::remove_dir_all(&dir);
            }
            prepared
        })
    };
    let prepared = checked
        .await
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))??;
    let place = shared.jobs.job_dir(&id);
    let moved = {
        let (from, to) = (prepared.dir.clone(), place);
        tokio::task::spawn_blocking(move || settle_in(&from, &to)).await
    };
    match moved {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(disk(&error, "keep the job's files")),
        Err(error) => return Err(Problem::new(Code::Internal, error.to_string())),
    }
    let now = micros(SystemTime::now());
    let new = NewJob {
        id: id.clone(),
        name: prepared.spec.name.clone(),
        submitter: by.name.clone(),
        organization: by.org.clone(),
        role: by.role.as_str().to_owned(),
        key: key.clone(),
        submitted: now,
        priority: i64::from(prepared.spec.priority),
        state: JobState::Submitted.as_str().to_owned(),
        spec: prepared.text,
        bundle_length: prepared.length,
        bundle_sha256: prepared.sha256,
        cloned_from: cloned_from.map(|id| id.to_string()),
    };
    let first = EventKind::State {
        state: JobState::Submitted,
        status: format!("submitted by {} of {}", by.name, by.org),
    };
    let changes = vec![Change::New(Box::new(new)), journal::event(&id, now, &first)];
    match shared.jobs.write(changes).await {
        Ok(()) => {}
        Err(JobsError::Exists) => {
            let removed = shared.jobs.remove_files(&id).await;
            removed.map_err(|error| internal(&error))?;
            return existing(shared, &by, key.as_deref()).await;
        }
        Err(error) => {
            // The row is not there, so nobody else will remove them.
            let _ = shared.jobs.remove_files(&id).await;
            return Err(internal(&error));
        }
    }
    let row = shared
        .jobs
        .job(&id)
        .await
        .map_err(|error| internal(&error))?;
    let row = row.ok_or_else(|| Problem::new(Code::Internal, "the job is gone"))?;
    let record = Record::read(row).map_err(|why| Problem::new(Code::Internal, why))?;
    shared.logger.for_job(id.as_str()).info(&format!(
        "job {id} ({}) submitted by {}",
        record.spec.name, by.name
    ));
    let sent = shared.inbox.send(Input::Submitted(Box::new(record))).await;
    sent.map_err(|_| stopping())?;
    Ok(Submitted {
        id: id.to_string(),
        existed: false,
    })
}

/// The job that was submitted with this key before.
pub(crate) async fn existing(
    shared: &Shared,
    by: &Subject,
    key: Option<&str>,
) -> Result<Submitted, Problem> {
    let key = key.ok_or_else(|| {
        Problem::new(Code::Internal, "two jobs were given one id").with_hint("submit it again")
    })?;
    let row = shared.jobs.by_key(&by.org, &by.name, key).await;
    let row = row.map_err(|error| internal(&error))?;
    let row = row.ok_or_else(|| {
        Problem::new(
            Code::KeyDeleted,
            "the job of this submit key was deleted just now",
        )
    })?;
    Ok(Submitted {
        id: row.job.id.to_string(),
        existed: true,
    })
}

pub(crate) fn stopping() -> Problem {
    Problem::new(Code::Unavailable, "the server is being stopped")
}

fn refused(text: String) -> Problem {
    Problem::new(Code::BundleRefused, text)
}

fn disk(error: &io::Error, doing: &str) -> Problem {
    let problem = Problem::new(Code::Internal, format!("could not {doing}: {error}"));
    match error.kind() {
        io::ErrorKind::StorageFull => problem.with_hint("make room on the server's disk"),
        _ => problem,
    }
}

/// Unpacks and checks a bundle, and puts together what the job will need.
fn prepare(
    dir: &Path,
    file: &Path,
    check: impl FnOnce(&Bundle) -> Result<(), Problem>,
    authority: &firesteel_pki::Authority,
) -> Result<Prepared, Problem> {
    fs::create_dir_all(dir).map_err(|error| disk(&error, "make the job's directory"))?;
    let submitted = File::open(file).map_err(|error| disk(&error, "open the upload"))?;
    let unpacked = dir.join(UNPACKED);
    let reader = io::BufReader::new(submitted);
    let bundle = bundle::unpack(reader, &unpacked, &Limits::server(), authority)
        .map_err(|error| refused(sentence(&error)).with_hint(error.hint().unwrap_or_default()))?;
    check(&bundle)?;
    let spec = JobSpec::parse_submitted(&bundle.spec).map_err(|error| {
        refused(error.to_string())
            .with_field(error.field.clone())
            .with_hint(error.hint().unwrap_or_default())
    })?;
    check_sites(&spec)?;
    if spec.initial_model.is_some() && bundle.initial.is_none() {
        return Err(refused(format!(
            "`initial_model` is given, but the bundle has no `{}`",
            bundle::INITIAL
        ))
        .with_field("initial_model"));
    }
    let kept = dir.join(BUNDLE);
    // On one disk it is one file; across disks it is copied.
    if fs::hard_link(file, &kept).is_err() {
        fs::copy(file, &kept).map_err(|error| disk(&error, "keep the bundle"))?;
    }
    let path = dir.join(FOR_SITES);
    let out =
        File::create_new(&path).map_err(|error| disk(&error, "write the bundle for sites"))?;
    let mut out = io::BufWriter::new(out);
    let written = bundle::for_sites(&unpacked, &mut out)
        .map_err(|error| Problem::new(Code::Internal, sentence(&error)))?;
    let flushed = out.flush().and_then(|()| out.get_ref().sync_all());
    flushed.map_err(|error| disk(&error, "write the bundle for sites"))?;
    fs::create_dir_all(dir.join("logs")).map_err(|error| disk(&error, "make the job's logs"))?;
    Ok(Prepared {
        dir: dir.to_owned(),
        text: String::from_utf8_lossy(&bundle.spec).into_owned(),
        spec,
        length: written.length,
        sha256: hex(&written.sha256)
            .ok_or_else(|| Problem::new(Code::Internal, "the bundle for sites has no digest"))?,
    })
}

/// What [`JobSpec::at_sites`] would refuse whatever the sites are.
fn check_sites(spec: &JobSpec) -> Result<(), Problem> {
    if spec.sites.is_empty() {
        return Ok(());
    }
    let at = spec.clone().at_sites(spec.sites.clone());
    at.map(drop).map_err(|error| {
        refused(error.to_string())
            .with_field(error.field.clone())
            .with_hint(error.hint().unwrap_or_default())
    })
}

/// Puts a job's files into their place, whole or not at all.
fn settle_in(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    // The name is on the disk before anything says that it is.
    let parent = to.parent().ok_or(io::ErrorKind::NotFound)?;
    File::open(parent)?.sync_all()
}

/// An id that sorts by time and that nobody has.
fn make_id() -> JobId {
    let stamp = Moment::of(SystemTime::now()).stamp();
    let id = format!("{stamp}-{:08x}", random() & 0xffff_ffff);
    JobId::new(&id).expect("digits and hyphens make a name")
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16)
                .ok()
                .filter(|_| pair.len() == 2)
        })
        .collect()
}
