//! One job at a site, from its deploy to its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use firesteel_base::{Hint as _, JobId, limits};
use firesteel_node::parts::sentence;
use firesteel_pki::bundle::{self, Bundle, Limits};
use firesteel_wire::node::{self, Deploy, Ended, Stage, Started, to_server};
use tokio::sync::{mpsc, watch};

use super::bundle::{Wanted as WantedBundle, fetch};
use super::desk::Desk;
use super::link;
use super::needs::{Checker, Declined, Ready};
use super::place::{self, JobPlace, Note};
use super::resources::{Allotment, Wanted};
use super::run;
use crate::logs::{Followed, Source, follow};

/// How long an agent may take to end once it is stopped: it gives its trainer 5 s,
/// and whoever aborts is answered within 10.
const STOPPED: Duration = Duration::from_secs(8);

/// What the server wants of a job.
#[derive(Debug)]
pub(super) enum Command {
    Deploy(Deploy),
    Start,
    Stop { reason: String, forget: bool },
}

/// What is there of a job that is ready.
struct Made {
    ready: Ready,
    allotment: Allotment,
}

/// How a job ended here.
#[derive(Default)]
struct Outcome {
    /// What went wrong; empty when nothing did.
    error: String,
    /// Whether its folder is to be removed.
    forget: bool,
    /// It goes on when the site's process is there again.
    later: bool,
}

struct Job {
    desk: Desk,
    id: JobId,
    place: JobPlace,
    commands: mpsc::Receiver<Command>,
}

/// Makes ready for a job and runs it, in a task of its own.
pub(super) fn begin(desk: Desk, id: JobId, deploy: Deploy, commands: mpsc::Receiver<Command>) {
    let mut job = Job::new(desk, id, commands);
    tokio::spawn(async move { job.deployed(deploy).await });
}

/// Goes on with a job that an earlier process of this site had.
pub(super) fn resume(desk: Desk, id: JobId, note: Note, commands: mpsc::Receiver<Command>) {
    let mut job = Job::new(desk, id, commands);
    tokio::spawn(async move { job.resumed(note).await });
}

impl Job {
    fn new(desk: Desk, id: JobId, commands: mpsc::Receiver<Command>) -> Self {
        Self {
            place: JobPlace::new(&desk.workspace, &id),
            desk,
            id,
            commands,
        }
    }

    async fn deployed(&mut self, mut deploy: Deploy) {
        loop {
            let outcome = match self.make(&deploy).await {
                Making::Made(made) => match self.wait(*made, &deploy).await {
                    Waited::Again(again) => {
                        deploy = again;
                        continue;
                    }
                    Waited::Over(outcome) => outcome,
                },
                Making::Again(again) => {
                    deploy = again;
                    continue;
                }
                Making::Declined(declined) => {
                    self.decline(&deploy, declined);
                    if let Some(again) = self.left() {
                        deploy = again;
                        continue;
                    }
                    return;
                }
                Making::Over(outcome) => outcome,
            };
            match self.end(outcome).await {
                Some(again) => deploy = again,
                None => return,
            }
        }
    }

    async fn resumed(&mut self, note: Note) {
        let deploy = Deploy {
            job: self.id.as_str().to_owned(),
            attempt: note.attempt,
            name: note.name.clone(),
            bundle_sha256: note.sha256.clone().into(),
            resources: note.resources.clone().into(),
            ..Deploy::default()
        };
        let outcome = match (self.check(&deploy).await, note.stage) {
            (Ok(made), Some(Stage::Running)) => {
                self.desk
                    .logger
                    .info(&format!("going on with job {}", self.id));
                self.run(made, &deploy).await
            }
            (Ok(made), _) => match self.wait(made, &deploy).await {
                Waited::Over(outcome) => outcome,
                Waited::Again(again) => return Box::pin(self.deployed(again)).await,
            },
            (Err(declined), _) => Outcome {
                error: format!(
                    "the site came back, but not with what the job needs: {}",
                    declined.reason
                ),
                ..Outcome::default()
            },
        };
        if let Some(again) = self.end(outcome).await {
            Box::pin(self.deployed(again)).await;
        }
    }

    // ----- making ready ---------------------------------------------------

    async fn make(&mut self, deploy: &Deploy) -> Making {
        self.desk.at(&self.id, Stage::Deploying);
        let (desk, id, place) = (self.desk.clone(), self.id.clone(), self.place.clone());
        let making = prepared(&desk, &id, &place, deploy);
        tokio::select! {
            biased;
            // An abort counts in every state.
            command = instead(&mut self.commands) => match command {
                Command::Deploy(again) => Making::Again(again),
                Command::Stop { forget, .. } => Making::Over(Outcome {
                    forget,
                    ..Outcome::default()
                }),
                Command::Start => Making::Over(Outcome::default()),
            },
            made = making => match made {
                Ok(made) => Making::Made(Box::new(made)),
                Err(declined) => Making::Declined(declined),
            },
        }
    }

    async fn check(&self, deploy: &Deploy) -> Result<Made, Declined> {
        checked(&self.desk, &self.place, deploy, None).await
    }

    fn decline(&self, deploy: &Deploy, declined: Declined) {
        self.desk.logger.warning(&format!(
            "job {} ({}) is declined: {}",
            self.id, deploy.name, declined.reason
        ));
        // An earlier run of it may have left logs to look at.
        let _ = match self.place.load() {
            Some(_) => self.place.tidy(),
            None => self.place.forget(),
        };
        self.desk.say(to_server::Body::Declined(node::Declined {
            job: self.id.as_str().to_owned(),
            attempt: deploy.attempt,
            code: declined.code.to_owned(),
            reason: declined.reason,
            hint: declined.hint,
        }));
    }

    /// Takes the job off the desk; a deploy that came in the last moment otherwise.
    fn left(&mut self) -> Option<Deploy> {
        while !self.desk.leave(&self.id, &self.commands) {
            match self.commands.try_recv() {
                Ok(Command::Deploy(again)) => return Some(again),
                Ok(Command::Stop { forget, .. }) => {
                    if forget {
                        let _ = self.place.forget();
                    }
                    self.said_ended(String::new());
                }
                Ok(Command::Start) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Ready, until the server says what is to be done.
    async fn wait(&mut self, made: Made, deploy: &Deploy) -> Waited {
        let note = self.note(&made, deploy, Stage::Ready);
        if let Err(error) = self.place.save(&note) {
            return Waited::Over(Outcome::failed(format!(
                "the site cannot write down the job: {error}"
            )));
        }
        self.desk.at(&self.id, Stage::Ready);
        self.desk.say(to_server::Body::Ready(node::Ready {
            job: self.id.as_str().to_owned(),
            attempt: deploy.attempt,
        }));
        let mut stop = self.desk.stop.clone();
        let command = tokio::select! {
            command = self.commands.recv() => command,
            () = link::stopped(&mut stop) => None,
        };
        match command {
            Some(Command::Start) => Waited::Over(self.run(made, deploy).await),
            // Checked again, also where it is the same: what was there may be gone.
            Some(Command::Deploy(again)) => Waited::Again(again),
            Some(Command::Stop { forget, .. }) => Waited::Over(Outcome {
                forget,
                ..Outcome::default()
            }),
            None => Waited::Over(Outcome::later()),
        }
    }

    fn note(&self, made: &Made, deploy: &Deploy, stage: Stage) -> Note {
        Note {
            name: deploy.name.clone(),
            attempt: deploy.attempt,
            sha256: deploy.bundle_sha256.to_vec(),
            stage: Some(stage),
            submitter: made.ready.submitter.clone(),
            resources: deploy.resources.to_vec(),
            logged: false,
        }
    }

    // ----- running --------------------------------------------------------

    async fn run(&mut self, made: Made, deploy: &Deploy) -> Outcome {
        let note = self.note(&made, deploy, Stage::Running);
        if let Err(error) = self.place.save(&note) {
            return Outcome::failed(format!("the site cannot write down the job: {error}"));
        }
        self.desk.at(&self.id, Stage::Running);
        self.started();
        let (stop, stopped) = watch::channel(None);
        let (over, log_over) = watch::channel(false);
        let launched = Arc::new(AtomicBool::new(false));
        let running = run::Running {
            desk: self.desk.clone(),
            job: self.id.clone(),
            place: self.place.clone(),
            stop: stopped,
            launched: Arc::clone(&launched),
        };
        follow_log(&self.desk, &self.id, &self.place, note, log_over);
        let Made { ready, allotment } = made;
        let acting = run::act(running, ready, &allotment);
        tokio::pin!(acting);
        let mut outcome = Outcome::default();
        // The server has said so.
        let mut ended_there = false;
        let mut limit: Option<tokio::time::Instant> = None;
        let mut site_stop = self.desk.stop.clone();
        loop {
            tokio::select! {
                ended = &mut acting => {
                    if let Err(error) = ended {
                        outcome.error = error;
                    }
                    break;
                }
                command = self.commands.recv() => match command {
                    Some(Command::Start) => self.started(),
                    // It is ready, and more than that.
                    Some(Command::Deploy(again)) => {
                        self.desk.say(to_server::Body::Ready(node::Ready {
                            job: self.id.as_str().to_owned(),
                            attempt: again.attempt,
                        }));
                    }
                    Some(Command::Stop { reason, forget }) => {
                        outcome.forget |= forget;
                        ended_there = true;
                        self.desk.at(&self.id, Stage::Stopping);
                        stop.send_replace(Some(reason));
                        limit.get_or_insert_with(|| tokio::time::Instant::now() + STOPPED);
                    }
                    None => {}
                },
                // The agent ends by itself; what it holds is kept for the next process.
                () = link::stopped(&mut site_stop), if limit.is_none() => {
                    limit = Some(tokio::time::Instant::now() + STOPPED);
                }
                () = until(limit), if limit.is_some() => {
                    outcome.error =
                        "the job's agent did not end in time and was ended".to_owned();
                    break;
                }
            }
            // Nothing of it runs yet: there is nobody to end in good order.
            if ended_there && !launched.load(Ordering::Relaxed) {
                break;
            }
        }
        outcome.later = !ended_there && self.desk.stop.borrow().is_some();
        // What the agent had is gone with it, before anybody is told of the end.
        over.send_replace(true);
        outcome
    }

    fn started(&self) {
        self.desk.say(to_server::Body::Started(Started {
            job: self.id.as_str().to_owned(),
        }));
    }

    // ----- the end --------------------------------------------------------

    /// The job is over here: everything is free. A deploy that came meanwhile.
    async fn end(&mut self, outcome: Outcome) -> Option<Deploy> {
        if outcome.later {
            // Written down as it is, for the next process.
            return self.left();
        }
        let known = self.place.load();
        if outcome.forget {
            self.removed(self.place.dir());
        } else if known.is_none() {
            // It was never ready: there is nothing to look at.
            self.removed(self.place.dir());
        } else {
            if let Err(error) = self.place.tidy() {
                self.desk.logger.warning(&format!(
                    "the folder of job {} cannot be tidied: {error}",
                    self.id
                ));
            }
            if let Some(note) = known {
                let ended = Note {
                    stage: None,
                    ..note
                };
                let _ = self.place.save(&ended);
            }
        }
        if !outcome.error.is_empty() {
            self.desk
                .logger
                .warning(&format!("job {} ended: {}", self.id, outcome.error));
        } else {
            self.desk.logger.info(&format!("job {} ended", self.id));
        }
        self.said_ended(outcome.error);
        let again = self.left();
        if again.is_none() {
            self.sweep();
        }
        again
    }

    fn said_ended(&self, error: String) {
        self.desk.say(to_server::Body::Ended(Ended {
            job: self.id.as_str().to_owned(),
            error,
        }));
    }

    fn removed(&self, dir: &Path) {
        if let Err(error) = self.place.forget() {
            self.desk
                .logger
                .warning(&format!("`{}` cannot be removed: {error}", dir.display()));
        }
    }

    /// Makes room among the folders of ended jobs.
    fn sweep(&self) {
        let desk = self.desk.clone();
        tokio::task::spawn_blocking(move || {
            let names = desk.names();
            for job in place::sweep(&desk.workspace, &names, limits::JOBS_KEPT) {
                desk.logger.info(&format!(
                    "the folder of the ended job {job} was removed for room"
                ));
            }
        });
    }
}

impl Outcome {
    fn failed(error: String) -> Self {
        Self {
            error,
            ..Self::default()
        }
    }

    fn later() -> Self {
        Self {
            later: true,
            ..Self::default()
        }
    }
}

enum Making {
    Made(Box<Made>),
    Declined(Declined),
    Again(Deploy),
    Over(Outcome),
}

enum Waited {
    Again(Deploy),
    Over(Outcome),
}

/// The next command while the job is being made ready.
async fn instead(commands: &mut mpsc::Receiver<Command>) -> Command {
    match commands.recv().await {
        Some(command) => command,
        None => std::future::pending().await,
    }
}

async fn until(limit: Option<tokio::time::Instant>) {
    match limit {
        Some(limit) => tokio::time::sleep_until(limit).await,
        None => std::future::pending().await,
    }
}

/// Fetches the bundle, unpacks it and sees to what the job needs.
async fn prepared(
    desk: &Desk,
    id: &JobId,
    place: &JobPlace,
    deploy: &Deploy,
) -> Result<Made, Declined> {
    let _turn = desk.deploys.acquire().await;
    let known = place
        .load()
        .is_some_and(|note| note.sha256[..] == deploy.bundle_sha256[..]);
    if known && place.bundle().exists() {
        match checked(desk, place, deploy, None).await {
            // A script may have written over what it was made from.
            Err(declined) if matches!(declined.code, "bundle" | "signature") => {}
            checked => return checked,
        }
    }
    let _ = std::fs::remove_dir_all(place.bundle());
    let wanted = WantedBundle {
        job: id.as_str(),
        length: deploy.bundle_length,
        sha256: &deploy.bundle_sha256,
    };
    let part = place.part();
    let sessions = desk.session.subscribe();
    fetch(&wanted, &part, &sessions, &desk.durations)
        .await
        .map_err(|(code, why)| Declined::new(code, why))?;
    checked(desk, place, deploy, Some(part)).await
}

/// Unpacks the part, or opens what was unpacked before, and sees to what the job
/// needs.
async fn checked(
    desk: &Desk,
    place: &JobPlace,
    deploy: &Deploy,
    part: Option<std::path::PathBuf>,
) -> Result<Made, Declined> {
    let (shared, place, wanted) = (desk.clone(), place.clone(), deploy.resources.clone());
    let checking = tokio::task::spawn_blocking(move || {
        let desk = shared;
        let bundle = unpacked(&desk, &place, part.as_deref())?;
        let checker = Checker {
            site: &desk.site,
            organization: desk.kit.org(),
            project: desk.kit.project(),
            config: &desk.config,
            environments: &desk.environments,
        };
        let ready = checker.check(&bundle)?;
        let site = desk.site.as_str();
        let wanted = Wanted::parse(&wanted).unwrap_or_else(|| ready.spec.resources_at(site).into());
        let among = ready
            .environment
            .as_ref()
            .and_then(|chosen| chosen.environment.gpus.as_deref());
        let allotment = desk
            .stock
            .take(&wanted, among)
            .map_err(|(code, why)| Declined::new(code, why))?;
        Ok(Made { ready, allotment })
    });
    checking
        .await
        .map_err(|_| Declined::new("bundle", "the site failed while it looked at the job"))?
}

fn unpacked(desk: &Desk, place: &JobPlace, part: Option<&Path>) -> Result<Bundle, Declined> {
    let into = place.bundle();
    let Some(part) = part else {
        return bundle::open(&into, desk.kit.authority()).map_err(|error| refused(&error));
    };
    let failed = |error: std::io::Error| {
        Declined::new(
            "no_room",
            format!("the site cannot unpack the job: {error}"),
        )
    };
    std::fs::create_dir_all(place.work()).map_err(failed)?;
    let file = std::fs::File::open(part).map_err(failed)?;
    let reader = std::io::BufReader::new(file);
    let bundle = bundle::unpack(reader, &into, &Limits::site(), desk.kit.authority())
        .map_err(|error| refused(&error))?;
    let _ = std::fs::remove_file(part);
    Ok(bundle)
}

fn refused(error: &bundle::BundleError) -> Declined {
    let code = match error {
        bundle::BundleError::Signature(_) => "signature",
        _ => "bundle",
    };
    Declined::new(code, sentence(error)).hint(error.hint().unwrap_or_default())
}

// ----- logs ---------------------------------------------------------------

/// Sends a job's log to the server as it grows, until `over`.
fn follow_log(desk: &Desk, job: &JobId, place: &JobPlace, note: Note, over: watch::Receiver<bool>) {
    if !desk.config.allow_log_streaming {
        return;
    }
    let source = match Source::open(&place.log(), limits::LOG_FILES_KEPT) {
        Ok(source) => source,
        Err(error) => {
            desk.logger
                .warning(&format!("the log of job {job} cannot be followed: {error}"));
            return;
        }
    };
    let followed = Followed {
        job: Some(job.as_str().to_owned()),
        source,
        session: desk.session.subscribe(),
        over: over.clone(),
        logger: desk.logger.for_job(job.as_str()),
        durations: desk.durations,
    };
    let place = place.clone();
    tokio::spawn(async move {
        follow(followed).await;
        // Of a job that has ended, the next process need not see to it.
        if *over.borrow() && place.load().is_some_and(|kept| kept.stage.is_none()) {
            let _ = place.save(&Note {
                logged: true,
                stage: None,
                ..note
            });
        }
    });
}

/// Sends what an earlier process left of the log of a job that has ended.
pub(super) fn finish_log(desk: &Desk, job: &JobId, place: &JobPlace, note: Note) {
    let (_, over) = watch::channel(true);
    follow_log(desk, job, place, note, over);
}
