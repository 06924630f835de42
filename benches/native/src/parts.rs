//! What the steps of a copy cost by themselves, in CPU seconds per gigabyte:
//! sealing and opening records, hashing, reading and writing a warm file, and
//! the faults of pages that are mapped.

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use firesteel_store::ModelObject;
use memmap2::MmapMut;

use crate::clock::Watch;
use crate::files::{self, WINDOW};

/// How large, and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where the files are made.
    #[arg(long)]
    folder: PathBuf,
    /// Size of the file.
    #[arg(long, default_value_t = 1024)]
    megabytes: u64,
    /// How often each step is done.
    #[arg(long, default_value_t = 4)]
    passes: usize,
}

/// Prints every step's figures, a list with one figure per pass.
pub fn run(options: &Options) -> Result<()> {
    let bytes = options.megabytes << 20;
    let (from, to) = (options.folder.join(SOURCE), options.folder.join("parts-to"));
    let model = files::mapped_model(&options.folder, SOURCE, bytes).context("the source")?;
    let bench = Bench {
        folder: options.folder.clone(),
        source: File::open(&from)?,
        model,
        target: files::warm_output(&to, bytes)?,
        path: to.clone(),
        gigabytes: bytes as f64 / 1e9,
        passes: options.passes,
    };
    let found = serde_json::json!({
        "seal": bench.seal()?,
        "open": bench.open()?,
        "hash": bench.hash()?,
        "read": bench.read()?,
        "write_warm": bench.write_warm()?,
        "write_fresh": bench.write_fresh(bytes)?,
        "faults_mapped": bench.faults_mapped()?,
        "faults_anonymous": bench.faults_anonymous(bytes)?,
        "memcpy": bench.memcpy()?,
    });
    std::fs::remove_file(&from)?;
    std::fs::remove_file(&to)?;
    println!("{found}");
    Ok(())
}

/// The source's name.
const SOURCE: &str = "parts-from";

struct Bench {
    folder: PathBuf,
    source: File,
    model: ModelObject,
    target: File,
    path: PathBuf,
    gigabytes: f64,
    passes: usize,
}

/// One byte of every page.
fn touch(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .step_by(4096)
        .map(|&byte| u64::from(byte))
        .sum()
}

impl Bench {
    /// CPU seconds per gigabyte of each pass.
    fn passes(&self, mut once: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        (0..self.passes)
            .map(|_| {
                let watch = Watch::start();
                once()?;
                Ok(watch.read().cpu_s / self.gigabytes)
            })
            .collect()
    }

    /// AES-256-GCM, as TLS 1.3 uses it: records of 16 KiB, sealed in place.
    fn seal(&self) -> Result<Vec<f64>> {
        let map = self.model.bytes();
        let cipher = Cipher::new()?;
        let mut record = vec![0; RECORD];
        self.passes(|| {
            for plain in map.chunks(RECORD) {
                record.clear();
                record.extend_from_slice(plain);
                cipher.seal(&mut record)?;
                black_box(&record);
            }
            Ok(())
        })
    }

    fn open(&self) -> Result<Vec<f64>> {
        let cipher = Cipher::new()?;
        let mut sealed = vec![0x5a; RECORD];
        cipher.seal(&mut sealed)?;
        let records = (self.gigabytes * 1e9 / RECORD as f64).ceil() as usize;
        // Opening needs the number that it was sealed with; the copy is part of
        // it, as a received record comes from elsewhere.
        let mut record = Vec::with_capacity(sealed.len());
        self.passes(|| {
            for _ in 0..records {
                record.clear();
                record.extend_from_slice(&sealed);
                cipher.open(&mut record)?;
                black_box(&record);
            }
            Ok(())
        })
    }

    fn hash(&self) -> Result<Vec<f64>> {
        let map = self.model.bytes();
        self.passes(|| {
            let mut hasher = blake3::Hasher::new();
            for window in map.chunks(WINDOW) {
                hasher.update(window);
            }
            black_box(hasher.finalize());
            Ok(())
        })
    }

    fn read(&self) -> Result<Vec<f64>> {
        let mut window = vec![0; WINDOW];
        self.passes(|| {
            let mut at = 0;
            loop {
                let got = self.source.read_at(&mut window, at)?;
                if got == 0 {
                    return Ok(());
                }
                at += got as u64;
            }
        })
    }

    fn write_warm(&self) -> Result<Vec<f64>> {
        let length = self.source.metadata()?.len();
        self.passes(|| write(&self.target, length).context("writing"))
    }

    /// Into a new file with allocated blocks, whose pages are not there yet.
    fn write_fresh(&self, bytes: u64) -> Result<Vec<f64>> {
        let path = self.path.with_extension("fresh");
        let mut figures = Vec::new();
        for _ in 0..self.passes {
            let file = fresh(&path, bytes)?;
            let watch = Watch::start();
            write(&file, bytes)?;
            figures.push(watch.read().cpu_s / self.gigabytes);
            drop(file);
            std::fs::remove_file(&path)?;
        }
        Ok(figures)
    }

    /// Mapping a warm file and reading a byte of each page.
    fn faults_mapped(&self) -> Result<Vec<f64>> {
        self.passes(|| {
            let model = files::mapped_model(&self.folder, SOURCE, 0)?;
            black_box(touch(model.bytes()));
            Ok(())
        })
    }

    /// Memory from the kernel, zeroed on its first touch.
    fn faults_anonymous(&self, bytes: u64) -> Result<Vec<f64>> {
        let length = usize::try_from(bytes)?;
        self.passes(|| {
            let mut map = MmapMut::map_anon(length)?;
            for byte in map.iter_mut().step_by(4096) {
                *byte = 1;
            }
            black_box(&map);
            Ok(())
        })
    }

    /// Warm to warm, larger than any cache.
    fn memcpy(&self) -> Result<Vec<f64>> {
        let from = self.model.bytes();
        let mut to = vec![1u8; from.len()];
        to.copy_from_slice(from);
        self.passes(|| {
            to.copy_from_slice(black_box(from));
            black_box(&to);
            Ok(())
        })
    }
}

fn write(file: &File, bytes: u64) -> io::Result<()> {
    let window = vec![0x5a; WINDOW];
    let mut at = 0;
    while at < bytes {
        let now = usize::try_from(bytes - at).unwrap_or(WINDOW).min(WINDOW);
        file.write_all_at(&window[..now], at)?;
        at += now as u64;
    }
    Ok(())
}

fn fresh(path: &Path, bytes: u64) -> Result<File> {
    let file = File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    Ok(file)
}

/// Bytes of a TLS record.
const RECORD: usize = 16 * 1024;

/// The cipher that two of our own agree on.
struct Cipher(LessSafeKey);

impl Cipher {
    fn new() -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(|_| anyhow!("a key"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// The same number each time: what is sealed here protects nothing.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; NONCE_LEN])
    }

    fn seal(&self, record: &mut Vec<u8>) -> Result<()> {
        self.0
            .seal_in_place_append_tag(Self::nonce(), Aad::empty(), record)
            .map_err(|_| anyhow!("a record could not be sealed"))
    }

    fn open(&self, record: &mut [u8]) -> Result<()> {
        self.0
            .open_in_place(Self::nonce(), Aad::empty(), record)
            .map(|_| ())
            .map_err(|_| anyhow!("a record could not be opened"))
    }
}
