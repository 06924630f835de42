//! The site's end: a log is read as it grows and sent to the server.

use std::time::Duration;

use bytes::Bytes;
use firesteel_base::Durations;
use firesteel_net::{Kind, LinkError, Reader, Session, Writer, split};
use firesteel_observe::Logger;
use firesteel_wire::logs::{LogBytes, LogEnd, LogFrom, LogIs, ToReader, to_reader};
use tokio::sync::watch;
use tokio::time::sleep;

use super::Source;

/// How often a log is looked at: a quarter of a second is live to a person, and
/// costs one system call.
const LOOK: Duration = Duration::from_millis(250);

/// After a stream that ended badly in a session that goes on.
const AGAIN: Duration = Duration::from_secs(1);

/// What is followed, and until when.
pub struct Followed {
    /// The job; none for the log of the site itself.
    pub job: Option<String>,
    /// Where the log is.
    pub source: Source,
    /// The session with the server while there is one.
    pub session: watch::Receiver<Option<Session>>,
    /// Turns true when nothing more will be written.
    pub over: watch::Receiver<bool>,
    /// Who is told what went wrong.
    pub logger: Logger,
    /// How long things may take.
    pub durations: Durations,
}

/// Why a stream of a log ended.
enum Stopped {
    /// The log is over and the server has all of it.
    Whole,
    /// The server wants none of it.
    Refused(String),
    /// The connection failed.
    Cut(String),
}

/// Sends a log to the server, over as many sessions as it takes, until it is over
/// and the server has it. Dropping this leaves off at any point.
pub async fn follow(mut followed: Followed) {
    loop {
        let Some(session) = present(&mut followed.session).await else {
            return; // the site itself ends
        };
        match followed.send_over(&session).await {
            Stopped::Whole => return,
            Stopped::Refused(why) => {
                followed
                    .logger
                    .warning(&format!("the server does not keep this log: {why}"));
                return;
            }
            Stopped::Cut(why) => {
                followed
                    .logger
                    .debug(&format!("the log's stream to the server ended: {why}"));
            }
        }
        // The next session is waited for; in this one a stream may be had again.
        let mut sessions = followed.session.clone();
        sessions.mark_unchanged();
        tokio::select! {
            changed = sessions.changed() => if changed.is_err() { return },
            () = sleep(AGAIN) => {}
        }
    }
}

/// The session that there is, or the next; none when there will be none.
async fn present(sessions: &mut watch::Receiver<Option<Session>>) -> Option<Session> {
    let there = sessions.wait_for(Option::is_some).await.ok()?;
    there.clone()
}

impl Followed {
    async fn send_over(&mut self, session: &Session) -> Stopped {
        match self.stream(session).await {
            Ok(stopped) => stopped,
            Err(why) => Stopped::Cut(why),
        }
    }

    async fn stream(&mut self, session: &Session) -> Result<Stopped, String> {
        let stream = session.open(Kind::LOGS).await.map_err(text)?;
        let (mut reader, mut writer) = split(stream);
        let is = LogIs {
            job: self.job.clone().unwrap_or_default(),
            birth: self.source.birth(),
        };
        say(&mut writer, to_reader::Body::Is(is)).await?;
        let limit = self.durations.connect;
        let from = tokio::time::timeout(limit, reader.next::<LogFrom>("LogFrom"))
            .await
            .map_err(|_| "the server did not answer".to_owned())?
            .map_err(link)?
            .ok_or("the server closed the stream")?;
        if !from.refused.is_empty() {
            return Ok(Stopped::Refused(from.refused));
        }
        let mut position = from.position;
        loop {
            // Asked before the last look, so that nothing written before is missed.
            let over = *self.over.borrow();
            while let Some((from, bytes)) = self.source.read(position, over).map_err(text)? {
                let next = from + bytes.len() as u64;
                let bytes = LogBytes {
                    from,
                    bytes: Bytes::from(bytes),
                };
                // A server that does not read holds up this task alone.
                tokio::select! {
                    biased;
                    refused = reader.next::<LogFrom>("LogFrom") => return Ok(ended(refused)),
                    said = say(&mut writer, to_reader::Body::Bytes(bytes)) => said?,
                }
                position = next;
            }
            if over {
                return self.end(&mut reader, &mut writer, position).await;
            }
            tokio::select! {
                biased;
                refused = reader.next::<LogFrom>("LogFrom") => return Ok(ended(refused)),
                // No more than a look earlier than it would have been.
                _ = self.over.wait_for(|over| *over) => {}
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Waits until the server has written down what it was sent.
    async fn end(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        at: u64,
    ) -> Result<Stopped, String> {
        say(writer, to_reader::Body::End(LogEnd { at })).await?;
        let confirmed = async {
            while let Some(from) = reader.next::<LogFrom>("LogFrom").await.map_err(link)? {
                if from.whole {
                    return Ok(Stopped::Whole);
                }
            }
            Err("the server closed the stream before it had the log".to_owned())
        };
        tokio::time::timeout(self.durations.idle, confirmed)
            .await
            .map_err(|_| "the server did not confirm the log".to_owned())?
    }
}

/// The server said something while it was sent the log: that it wants no more.
fn ended(said: Result<Option<LogFrom>, LinkError>) -> Stopped {
    match said {
        Ok(Some(from)) if !from.refused.is_empty() => Stopped::Refused(from.refused),
        Ok(Some(_)) => Stopped::Cut("the server began again".to_owned()),
        Ok(None) => Stopped::Cut("the server closed the stream".to_owned()),
        Err(error) => Stopped::Cut(link(error)),
    }
}

async fn say(writer: &mut Writer, body: to_reader::Body) -> Result<(), String> {
    writer
        .send(&ToReader { body: Some(body) })
        .await
        .map_err(link)
}

fn link(error: LinkError) -> String {
    text(error)
}

fn text(error: impl std::error::Error) -> String {
    firesteel_node::parts::sentence(&error)
}
