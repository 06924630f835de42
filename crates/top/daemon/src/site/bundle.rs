//! Fetching a job's bundle, over as many connections as it takes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use firesteel_base::{Durations, limits};
use firesteel_net::{Kind, Session, read_one, write_one};
use firesteel_node::parts::sentence;
use firesteel_wire::node::{BundleIs, BundleWanted};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

/// Bytes that are read at a time.
const WINDOW: usize = 64 * 1024;

/// After a try that failed in a session that goes on.
const AGAIN: Duration = Duration::from_millis(500);

/// Times that bytes with another digest are fetched anew: once may be the disk.
const TRIES: u32 = 2;

/// What is to be fetched.
pub(super) struct Wanted<'a> {
    pub(super) job: &'a str,
    pub(super) length: u64,
    pub(super) sha256: &'a [u8],
}

/// Fetches a bundle into `part`, or goes on where an earlier fetch stopped, and
/// checks its digest. Goes on over lost connections for as long as it is polled.
///
/// # Errors
/// A word for programs and a sentence.
pub(super) async fn fetch(
    wanted: &Wanted<'_>,
    part: &Path,
    session: &watch::Receiver<Option<Session>>,
    durations: &Durations,
) -> Result<(), (&'static str, String)> {
    let most = limits::BUNDLE_CODE + limits::BUNDLE_MODEL;
    if wanted.length > most {
        return Err((
            "bundle",
            format!(
                "its bundle has {} bytes, the limit is {most}",
                wanted.length
            ),
        ));
    }
    for _ in 0..TRIES {
        whole(wanted, part, session, durations).await?;
        let (path, length) = (part.to_owned(), wanted.length);
        let digest = tokio::task::spawn_blocking(move || digest(&path, length)).await;
        match digest {
            Ok(Ok(digest)) if digest == wanted.sha256 => return Ok(()),
            _ => {
                let _ = std::fs::remove_file(part);
            }
        }
    }
    Err((
        "bundle",
        "its bundle arrived with another digest than the server named".to_owned(),
    ))
}

/// Fetches until there are as many bytes as there should be.
async fn whole(
    wanted: &Wanted<'_>,
    part: &Path,
    sessions: &watch::Receiver<Option<Session>>,
    durations: &Durations,
) -> Result<(), (&'static str, String)> {
    let mut sessions = sessions.clone();
    loop {
        let file = open(part, wanted.length).map_err(|error| no_room(&error))?;
        let have = file.metadata().map_err(|error| no_room(&error))?.len();
        if have == wanted.length {
            return Ok(());
        }
        let there = sessions.wait_for(Option::is_some).await;
        let Some(session) = there.ok().and_then(|session| session.clone()) else {
            // The site itself ends; whoever asked drops this.
            return std::future::pending().await;
        };
        match some(wanted, have, file, &session, durations).await {
            Ok(()) => {}
            Err(Broken::Refused(why)) => return Err(("bundle", why)),
            Err(Broken::Disk(error)) => return Err(no_room(&error)),
            Err(Broken::Cut) => {
                sessions.mark_unchanged();
                tokio::select! {
                    _ = sessions.changed() => {}
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
        }
    }
}

/// Why a try ended early.
enum Broken {
    Refused(String),
    Disk(io::Error),
    Cut,
}

async fn some(
    wanted: &Wanted<'_>,
    have: u64,
    mut file: File,
    session: &Session,
    durations: &Durations,
) -> Result<(), Broken> {
    let asking = async {
        let mut stream = session.open(Kind::BUNDLE).await.ok()?;
        let question = BundleWanted {
            job: wanted.job.to_owned(),
            offset: have,
        };
        write_one(&mut stream, &question).await.ok()?;
        let answer = read_one::<BundleIs>(&mut stream, "BundleIs", limits::STREAM_MESSAGE).await;
        Some((stream, answer.ok()??))
    };
    let asked = tokio::time::timeout(durations.connect, asking).await;
    let Ok(Some((mut stream, is))) = asked else {
        return Err(Broken::Cut);
    };
    if !is.refused.is_empty() {
        return Err(Broken::Refused(format!(
            "the server does not give out its bundle: {}",
            is.refused
        )));
    }
    if is.length != wanted.length || is.sha256[..] != *wanted.sha256 {
        return Err(Broken::Refused(
            "the server has another bundle than it named".to_owned(),
        ));
    }
    let mut left = wanted.length - have;
    let mut window = vec![0; WINDOW];
    while left > 0 {
        let most = usize::try_from(left).map_or(WINDOW, |left| left.min(WINDOW));
        let into = window.get_mut(..most).unwrap_or_default();
        let read = tokio::time::timeout(durations.idle, stream.read(into)).await;
        let (Ok(Ok(count)), true) = (read, most > 0) else {
            return Err(Broken::Cut);
        };
        if count == 0 {
            return Err(Broken::Cut);
        }
        let bytes = window.get(..count).unwrap_or_default();
        file.write_all(bytes).map_err(Broken::Disk)?;
        left -= count as u64;
    }
    Ok(())
}

/// The part, whose bytes are those of the bundle's beginning.
fn open(part: &Path, length: u64) -> io::Result<File> {
    if let Some(dir) = part.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = OpenOptions::new().append(true).create(true).open(part)?;
    if file.metadata()?.len() > length {
        // Of another bundle.
        file.set_len(0)?;
    }
    Ok(file)
}

fn digest(part: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut context = Context::new(&SHA256);
    let mut file = File::open(part)?.take(length);
    let mut window = vec![0; WINDOW];
    loop {
        match file.read(&mut window)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            count => context.update(window.get(..count).unwrap_or_default()),
        }
    }
}

fn no_room(error: &io::Error) -> (&'static str, String) {
    (
        "no_room",
        format!("the site cannot write its bundle: {}", sentence(error)),
    )
}
