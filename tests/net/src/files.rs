//! Files that are offered, and files that are received.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use firesteel_net::pull::{FileSource, Offered, Offers, Sink};
use firesteel_rig::models;
use firesteel_store::{Incoming, Objects, PartName};
use firesteel_tensor::ModelHeader;
use firesteel_transfer::{Layout, ObjectRef};

/// Writes a model file of noise; where it is.
pub fn model_file(folder: &Path, tensors: u64, each: u64, seed: u64) -> Result<PathBuf> {
    let path = folder.join(format!("model-{tensors}-{each}-{seed}.safetensors"));
    let mut file = BufWriter::new(File::create(&path)?);
    models::noise(&mut file, tensors, each, seed)?;
    file.into_inner()?.sync_all()?;
    Ok(path)
}

/// What one end offers, and to whom.
#[derive(Default)]
pub struct Shelf(Mutex<BTreeMap<u64, Entry>>);

struct Entry {
    /// The only one who may have it.
    peer: String,
    offered: Arc<Offered>,
}

impl Shelf {
    /// Offers a model file to a peer, under a number.
    pub fn offer(&self, peer: &str, id: u64, path: &Path) -> Result<ObjectRef> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut head = vec![0; 8];
        file.read_exact(&mut head)?;
        let size = u64::from_le_bytes(head.as_slice().try_into()?);
        file.take(size).read_to_end(&mut head)?;
        let head = ModelHeader::parse(&head, length)?;
        let source = Arc::new(FileSource::open(path)?);
        let offered = Offered::new(source, Layout::of_model(&head));
        let entry = Entry {
            peer: peer.to_owned(),
            offered,
        };
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.insert(id, entry);
        Ok(ObjectRef::new(id, length)?)
    }
}

impl Shelf {
    /// Has the manifest of an offer made now, as it is for all but the first who
    /// asks.
    pub async fn prepare(&self, peer: &str, object: ObjectRef) -> Result<()> {
        let offered = self.find(peer, object.id).context("it is not offered")?;
        offered.manifest().await?;
        Ok(())
    }
}

impl Offers for Shelf {
    fn find(&self, peer: &str, object: u64) -> Option<Arc<Offered>> {
        let shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = shelf.get(&object).filter(|entry| entry.peer == peer)?;
        Some(Arc::clone(&entry.offered))
    }
}

/// A file of the store that is being received.
pub struct Arriving(Incoming);

impl Arriving {
    /// Room for an object; what an earlier try left under this number is there.
    pub fn new(objects: &Objects, object: ObjectRef) -> Result<Arc<Self>> {
        let mut name = [0; 32];
        for (to, from) in name.iter_mut().zip(object.id.to_le_bytes()) {
            *to = from;
        }
        let incoming = objects.incoming(&PartName::of_digest(&name), object.length)?;
        Ok(Arc::new(Self(incoming)))
    }

    /// Everything has arrived: the bytes of the model.
    pub fn finish(self: Arc<Self>) -> Result<firesteel_store::ModelObject> {
        let Some(arriving) = Arc::into_inner(self) else {
            anyhow::bail!("somebody still receives it");
        };
        Ok(arriving.0.finish()?)
    }
}

impl Sink for Arriving {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn received(&self) -> Vec<Range<u64>> {
        self.0.received()
    }

    fn note(&self) -> Vec<u8> {
        self.0.note()
    }

    fn save(&self, note: &[u8]) -> io::Result<()> {
        self.0.save(note)
    }

    fn forget(&self, range: Range<u64>) {
        self.0.forget(range);
    }
}
