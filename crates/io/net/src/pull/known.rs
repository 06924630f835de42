//! What is there already of one job, and need not be pulled.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firesteel_base::limits;
use firesteel_transfer::{Block, Digest, Manifest};

use super::Source;

/// Files of one job that are at hand, by the digests of their blocks.
///
/// One job's only: whether a digest is known must tell a peer nothing about
/// another job. What is copied from here is checked like what is pulled.
#[derive(Default)]
pub struct Known(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    files: BTreeMap<Digest, (Arc<dyn Source>, Arc<Manifest>)>,
    /// From a block to a file that has it, and where.
    blocks: HashMap<Digest, (Digest, u64)>,
}

impl Known {
    /// From now on `source` is at hand; its manifest is `manifest`.
    pub fn add(&self, source: Arc<dyn Source>, manifest: Arc<Manifest>) {
        let mut shelf = self.shelf();
        let root = manifest.root();
        for block in manifest.blocks_from(0) {
            if block.length >= limits::TRANSFER_SKIP {
                shelf.blocks.insert(block.digest, (root, block.offset));
            }
        }
        shelf.files.insert(root, (source, manifest));
    }

    /// The file is not at hand any more.
    pub fn remove(&self, root: &Digest) {
        let mut shelf = self.shelf();
        if shelf.files.remove(root).is_some() {
            shelf.blocks.retain(|_, (file, _)| file != root);
        }
    }

    /// The manifest of a file that is at hand whole.
    pub fn whole(&self, root: &Digest) -> Option<Arc<Manifest>> {
        Some(self.shelf().files.get(root)?.1.clone())
    }

    /// Where a block's bytes are.
    pub(super) fn find(&self, block: &Block) -> Option<(Arc<dyn Source>, u64)> {
        let shelf = self.shelf();
        let (file, offset) = shelf.blocks.get(&block.digest)?;
        Some((shelf.files.get(file)?.0.clone(), *offset))
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // Whatever was half done when a holder panicked, what is found is checked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
