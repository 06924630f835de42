//! TensorBoard's event files.

mod proto;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use prost::Message;

use crate::clock::unix_seconds;

/// Bytes that may wait in memory before they are written.
const BUFFER: usize = 64 * 1024;

/// An event file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write TensorBoard events to `{}`", path.display())]
pub struct TbError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Writes one event file for TensorBoard, below the directory of one site.
///
/// The file is made with the first event. Events are whole in it or not there;
/// [`flush`](Self::flush) makes what was added visible to readers, and so does
/// dropping the writer.
pub struct TbWriter {
    dir: PathBuf,
    open: Option<Open>,
    buffer: Vec<u8>,
}

struct Open {
    path: PathBuf,
    file: File,
    size: u64,
}

impl TbWriter {
    /// A writer for `dir`, such as `tb_events/site-1`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            open: None,
            buffer: Vec::new(),
        }
    }

    /// Adds one value of a curve.
    ///
    /// # Errors
    /// [`TbError`] when the file cannot be written.
    pub fn add_scalar(
        &mut self,
        tag: &str,
        value: f64,
        step: i64,
        time: SystemTime,
    ) -> Result<(), TbError> {
        self.add(step, time, vec![proto::scalar(tag, value)])
    }

    /// Adds a value to each of several curves that belong together; they are
    /// shown as `tag/name`.
    ///
    /// # Errors
    /// [`TbError`] when the file cannot be written.
    pub fn add_scalars(
        &mut self,
        tag: &str,
        values: &[(String, f64)],
        step: i64,
        time: SystemTime,
    ) -> Result<(), TbError> {
        let values = values
            .iter()
            .map(|(name, value)| proto::scalar(&format!("{tag}/{name}"), *value))
            .collect();
        self.add(step, time, values)
    }

    /// Adds a text, shown as Markdown.
    ///
    /// # Errors
    /// [`TbError`] when the file cannot be written.
    pub fn add_text(
        &mut self,
        tag: &str,
        text: &str,
        step: i64,
        time: SystemTime,
    ) -> Result<(), TbError> {
        self.add(step, time, vec![proto::text(tag, text)])
    }

    /// Hands everything added so far to the system.
    ///
    /// # Errors
    /// [`TbError`] when the file cannot be written; what waited is lost then,
    /// and the file ends with a whole event.
    pub fn flush(&mut self) -> Result<(), TbError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.buffer);
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        match open.file.write_all(&waiting) {
            Ok(()) => {
                open.size += waiting.len() as u64;
                Ok(())
            }
            Err(source) => {
                let _ = open.file.set_len(open.size);
                Err(TbError {
                    path: open.path.clone(),
                    source,
                })
            }
        }
    }

    fn add(
        &mut self,
        step: i64,
        time: SystemTime,
        values: Vec<proto::Value>,
    ) -> Result<(), TbError> {
        if self.open.is_none() {
            self.open = Some(open(&self.dir, time)?);
            let version = proto::Event {
                wall_time: unix_seconds(time),
                file_version: Some(proto::VERSION.into()),
                ..proto::Event::default()
            };
            frame(&version.encode_to_vec(), &mut self.buffer);
        }
        let event = proto::Event {
            wall_time: unix_seconds(time),
            step,
            file_version: None,
            summary: Some(proto::Summary { value: values }),
        };
        frame(&event.encode_to_vec(), &mut self.buffer);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }
}

impl Drop for TbWriter {
    fn drop(&mut self) {
        // Nobody is left to tell; a lost curve never fails a job.
        let _ = self.flush();
    }
}

/// A name that no other writer of this or another process takes, and in which
/// TensorBoard recognizes an event file.
fn open(dir: &Path, time: SystemTime) -> Result<Open, TbError> {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let host = rustix::system::uname();
    let host: String = host
        .nodename()
        .to_string_lossy()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        })
        .collect();
    let name = format!(
        "events.out.tfevents.{seconds:010}.{host}.{}.{}",
        std::process::id(),
        FILES.fetch_add(1, Ordering::Relaxed)
    );
    let path = dir.join(name);
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| {
            OpenOptions::new()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
        });
    match made {
        Ok(file) => Ok(Open {
            path,
            file,
            size: 0,
        }),
        Err(source) => Err(TbError { path, source }),
    }
}

/// One TFRecord: length, masked CRC of the length, data, masked CRC of the data.
fn frame(data: &[u8], into: &mut Vec<u8>) {
    let length = (data.len() as u64).to_le_bytes();
    into.extend_from_slice(&length);
    into.extend_from_slice(&masked_crc(&length).to_le_bytes());
    into.extend_from_slice(data);
    into.extend_from_slice(&masked_crc(data).to_le_bytes());
}

/// TFRecord rotates and shifts its CRC-32C, so that the CRC of data that holds
/// CRCs itself is no trivial value.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests;
