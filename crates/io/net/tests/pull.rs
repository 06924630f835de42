//! Pulls over in-memory streams: whole, cut, resumed, refused, hostile.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use firesteel_base::{Durations, Hint};
use firesteel_net::pull::{
    FileSource, Known, Offered, Offers, Progress, Pull, PullError, PullFailure, Pulled, ServeError,
    Served, Serving, Sink, Source, serve,
};
use firesteel_net::{BoxStream, pipe};
use firesteel_tensor::{DType, HeaderBuilder, ModelHeader};
use firesteel_transfer::frame::{Head, Kind};
use firesteel_transfer::{
    Budget, Layout, Manifest, ManifestBuilder, ObjectRef, Ranges, RefusalCode, TransferError,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes in memory, as a file that can be read.
struct Bytes {
    bytes: Vec<u8>,
    read: AtomicU64,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            read: AtomicU64::new(0),
        })
    }
}

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        into.copy_from_slice(&self.bytes[start..start + into.len()]);
        self.read.fetch_add(into.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn name(&self) -> String {
        "bytes".into()
    }
}

/// A file being received, in memory. It outlives a [`Pull`], as a part file does.
#[derive(Default)]
struct Part {
    state: Mutex<PartState>,
    /// Fails to write from so many bytes on.
    full_at: Option<u64>,
}

#[derive(Default, Clone)]
struct PartState {
    bytes: Vec<u8>,
    received: Ranges,
    verified: Ranges,
    note: Vec<u8>,
    written: u64,
}

impl Part {
    fn new(length: usize) -> Arc<Self> {
        Self::from_state(PartState {
            bytes: vec![0xaa; length],
            ..PartState::default()
        })
    }

    fn from_state(state: PartState) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            full_at: None,
        })
    }

    fn state(&self) -> PartState {
        self.state.lock().unwrap().clone()
    }
}

impl Sink for Part {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        if self.full_at.is_some_and(|full| end > full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut state = self.state.lock().unwrap();
        state.bytes[offset as usize..end as usize].copy_from_slice(bytes);
        state.received.insert(offset..end);
        state.written += bytes.len() as u64;
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        into.copy_from_slice(&self.state.lock().unwrap().bytes[start..start + into.len()]);
        Ok(())
    }

    fn received(&self) -> Vec<Range<u64>> {
        self.state.lock().unwrap().received.iter().collect()
    }

    fn note(&self) -> Vec<u8> {
        self.state.lock().unwrap().note.clone()
    }

    fn save(&self, note: &[u8]) -> io::Result<()> {
        self.state.lock().unwrap().note = note.to_vec();
        Ok(())
    }

    fn forget(&self, range: Range<u64>) {
        self.state.lock().unwrap().received.remove(range);
    }

    fn verified(&self, range: Range<u64>) {
        self.state.lock().unwrap().verified.insert(range);
    }
}

/// One object under the number 7, for the peer `puller` only.
struct Shop(Arc<Offered>);

impl Offers for Shop {
    fn find(&self, peer: &str, object: u64) -> Option<Arc<Offered>> {
        (peer == "puller" && object == 7).then(|| self.0.clone())
    }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A model file with `u8` tensors of these lengths.
fn model(lengths: &[usize], seed: u64) -> (Vec<u8>, ModelHeader) {
    let mut builder = HeaderBuilder::new();
    for (at, length) in lengths.iter().enumerate() {
        builder.tensor(&format!("t{at}"), DType::U8, &[*length as u64]);
    }
    let (mut bytes, header) = builder.encode().unwrap();
    bytes.extend(noise(lengths.iter().sum(), seed));
    assert_eq!(bytes.len() as u64, header.total_len());
    (bytes, header)
}

fn offer_model(bytes: &[u8], header: &ModelHeader) -> Arc<Offered> {
    Offered::new(Bytes::new(bytes.to_vec()), Layout::of_model(header))
}

fn offer_file(bytes: &[u8]) -> Arc<Offered> {
    let layout = Layout::of_file(bytes.len() as u64).unwrap();
    Offered::new(Bytes::new(bytes.to_vec()), layout)
}

fn manifest_of(bytes: &[u8], layout: Layout) -> Arc<Manifest> {
    let mut builder = ManifestBuilder::new(layout);
    builder.feed(bytes);
    Arc::new(builder.finish().unwrap())
}

fn serving(peer: &str) -> Serving {
    Serving {
        peer: peer.into(),
        budget: Budget::default(),
        durations: Durations::default(),
    }
}

/// Starts serving `offered` and gives the other end of the stream.
fn served(
    offered: &Arc<Offered>,
) -> (
    BoxStream,
    tokio::task::JoinHandle<Result<Served, ServeError>>,
) {
    let (near, far) = pipe(64 * 1024);
    let shop = Shop(offered.clone());
    let task = tokio::spawn(async move { serve(far, &shop, &serving("puller")).await });
    (near, task)
}

fn pull_into(part: &Arc<Part>, length: usize) -> Pull {
    let object = ObjectRef::new(7, length as u64).unwrap();
    Pull::new(
        "the server",
        "the model of round 3",
        object,
        part.clone(),
        &Budget::default(),
    )
}

/// The errors' sentences, from the outermost in.
fn sentences(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A test that hangs says so, and does not take the time of all of them.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .expect("it should have ended long ago")
}

/// Pulls `bytes` whole and checks what came.
async fn check_whole(bytes: Vec<u8>, offered: Arc<Offered>) -> Pulled {
    let part = Part::new(bytes.len());
    let (stream, task) = served(&offered);
    let pulled = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap();
    let served = soon(task).await.unwrap().unwrap();
    let state = part.state();
    assert!(state.bytes == bytes, "other bytes arrived");
    assert_eq!(state.verified.bytes(), bytes.len() as u64);
    assert_eq!(served.complete, 1);
    assert_eq!(
        pulled.counters.pulled + pulled.counters.skipped,
        bytes.len() as u64
    );
    assert_eq!(served.bytes, pulled.counters.pulled);
    pulled
}

/// Says of some of its bytes that they lie in memory, and writes rubbish where
/// the others belong.
struct PartlyCached(Arc<Bytes>, u64);

impl Source for PartlyCached {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn read_cached_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        into.fill(0x55);
        let here = self.1.saturating_sub(offset).min(into.len() as u64) as usize;
        let start = offset as usize;
        into[..here].copy_from_slice(&self.0.bytes[start..start + here]);
        Ok(here)
    }

    fn name(&self) -> String {
        self.0.name()
    }
}

#[tokio::test]
async fn what_lies_in_memory_is_sent_at_once_and_the_rest_is_read() {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at * 7 % 251) as u8).collect();
    for cached in [0, 1, 700_000, bytes.len() as u64] {
        let source = Bytes::new(bytes.clone());
        let layout = Layout::of_file(bytes.len() as u64).unwrap();
        let offered = Offered::new(Arc::new(PartlyCached(source.clone(), cached)), layout);
        check_whole(bytes.clone(), offered).await;
        // Once for the manifest; and what was not at hand, in whole batches.
        let read = source.read.load(Ordering::Relaxed);
        let sent = read - bytes.len() as u64;
        assert_eq!(sent == 0, cached == bytes.len() as u64, "{cached}: {sent}");
        assert!(sent >= bytes.len() as u64 - cached, "{cached}: {sent}");
    }
}

#[tokio::test]
async fn a_model_arrives_whole() {
    let block = 4 << 20;
    for lengths in [
        &[][..],
        &[0],
        &[1],
        &[100, 0, 0, 3],
        &[block],
        &[block + 1, 5, block - 1],
        &[3 * block + 12_345, 1, 0, 70_000],
    ] {
        let (bytes, header) = model(lengths, 1);
        let pulled = check_whole(bytes.clone(), offer_model(&bytes, &header)).await;
        pulled.manifest.fits(&header).unwrap();
        assert_eq!(pulled.manifest.tensors().len(), lengths.len());
    }
}

#[tokio::test]
async fn a_plain_file_arrives_whole() {
    for length in [0, 1, 65_537, 9_000_000] {
        let bytes = noise(length, 2);
        check_whole(bytes.clone(), offer_file(&bytes)).await;
    }
}

/// A stream that breaks after so many bytes towards the puller.
fn cut_after(offered: &Arc<Offered>, bytes: usize) -> BoxStream {
    let (mut near, _task) = served(offered);
    let (ours, mut theirs) = pipe(64 * 1024);
    tokio::spawn(async move {
        let mut left = bytes;
        let mut up = vec![0; 16 * 1024];
        let mut down = vec![0; 16 * 1024];
        let (mut read_near, mut write_near) = tokio::io::split(&mut near);
        let (mut read_theirs, mut write_theirs) = tokio::io::split(&mut theirs);
        let upwards = async {
            while let Ok(read @ 1..) = read_theirs.read(&mut up).await {
                if write_near.write_all(&up[..read]).await.is_err() {
                    break;
                }
            }
        };
        let downwards = async {
            while left > 0 {
                let most = left.min(down.len());
                let Ok(read @ 1..) = read_near.read(&mut down[..most]).await else {
                    break;
                };
                left -= read;
                if write_theirs.write_all(&down[..read]).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! { () = upwards => {} () = downwards => {} }
    });
    ours
}

#[tokio::test]
async fn after_cuts_it_goes_on_at_the_byte() {
    let (bytes, header) = model(&[3_000_000, 70_000, 5_000_001], 3);
    let offered = offer_model(&bytes, &header);
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len());
    for cut in [
        10,
        40,
        200,
        100_000,
        700_001,
        262_144 + 333,
        1_000_000,
        1_500_000,
    ] {
        let error = soon(pull.over(cut_after(&offered, cut))).await.unwrap_err();
        assert!(error.reason.is_passing(), "{}", sentences(&error));
    }
    let (stream, _task) = served(&offered);
    let pulled = soon(pull.over(stream)).await.unwrap();
    assert!(part.state().bytes == bytes);
    // Not one byte came twice.
    assert_eq!(pulled.counters.pulled, bytes.len() as u64);
    assert_eq!(part.state().written, bytes.len() as u64);
}

#[tokio::test]
async fn it_is_tried_again_until_it_is_there() {
    let bytes = noise(6_000_000, 4);
    let offered = offer_file(&bytes);
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len());
    let mut tries = 0;
    let pulled = soon(pull.retrying(|| {
        tries += 1;
        let stream = match tries {
            1 => Err("nobody listens"),
            2..=9 => Ok(cut_after(&offered, 500_000)),
            _ => Ok(served(&offered).0),
        };
        async move { stream }
    }))
    .await
    .unwrap();
    assert!(part.state().bytes == bytes);
    assert_eq!(pulled.counters.pulled, bytes.len() as u64);
    assert_eq!(tries, 10);
}

/// Cuts a pull in the middle; the part as a killed process leaves it.
async fn half_pulled(bytes: &[u8], offered: &Arc<Offered>) -> PartState {
    let part = Part::new(bytes.len());
    let cut = cut_after(offered, bytes.len() / 2);
    soon(pull_into(&part, bytes.len()).over(cut))
        .await
        .unwrap_err();
    part.state()
}

#[tokio::test]
async fn another_process_goes_on_where_the_killed_one_was() {
    let (bytes, header) = model(&[9_000_000, 50, 3_000_000], 5);
    let offered = offer_model(&bytes, &header);
    let state = half_pulled(&bytes, &offered).await;
    let had = state.received.bytes();
    assert!(had > 4_000_000);
    let part = Part::from_state(state);
    let (stream, _task) = served(&offered);
    let pulled = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap();
    assert!(part.state().bytes == bytes);
    assert_eq!(pulled.counters.skipped, had);
    assert_eq!(pulled.counters.pulled, bytes.len() as u64 - had);
}

#[tokio::test]
async fn what_a_killed_process_left_is_checked_before_it_is_used() {
    let bytes = noise(9_000_000, 6);
    let offered = offer_file(&bytes);
    let mut state = half_pulled(&bytes, &offered).await;
    state.bytes[1_000_000] ^= 1;
    let part = Part::from_state(state);
    let (stream, _task) = served(&offered);
    soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap();
    assert!(part.state().bytes == bytes);
}

#[tokio::test]
async fn a_part_whose_start_of_a_block_is_wrong_is_pulled_again() {
    let bytes = noise(3_000_000, 6);
    let offered = offer_file(&bytes);
    let mut state = half_pulled(&bytes, &offered).await;
    state.bytes[5] ^= 1;
    let part = Part::from_state(state);
    let (stream, _task) = served(&offered);
    let pulled = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap();
    assert!(part.state().bytes == bytes);
    assert_eq!(pulled.counters.bad_blocks, 1);
}

#[tokio::test]
async fn a_part_of_another_file_is_not_used() {
    let bytes = noise(5_000_000, 7);
    let offered = offer_file(&bytes);
    let state = half_pulled(&bytes, &offered).await;
    let other = noise(5_000_000, 8);
    let part = Part::from_state(state);
    let (stream, _task) = served(&offer_file(&other));
    let pulled = soon(pull_into(&part, other.len()).over(stream))
        .await
        .unwrap();
    assert!(part.state().bytes == other);
    assert_eq!(pulled.counters.skipped, 0);
}

#[tokio::test]
async fn an_unchanged_model_sent_again_costs_nothing() {
    let lengths = [6_000_000, 1_000_000, 300_000, 40_000];
    let (bytes, header) = model(&lengths, 9);
    let source = Bytes::new(bytes.clone());
    let known = Arc::new(Known::default());
    let manifest = manifest_of(&bytes, Layout::of_model(&header));
    known.add(source, manifest.clone());
    // One tensor of it changes.
    let mut changed = bytes.clone();
    let tensor = &manifest.tensors()[2];
    changed[tensor.offset as usize] ^= 1;
    for (bytes, most) in [(&bytes, 0), (&changed, tensor.length)] {
        let part = Part::new(bytes.len());
        let (stream, _task) = served(&offer_model(bytes, &header));
        let mut pull = pull_into(&part, bytes.len()).known(known.clone());
        let pulled = soon(pull.over(stream)).await.unwrap();
        assert!(part.state().bytes == *bytes);
        // The header is shorter than what is worth a copy.
        let head = header.data_start();
        assert_eq!(pulled.counters.pulled, most + head);
        assert!(pulled.counters.manifest + head < bytes.len() as u64 / 100);
        // The manifest of the same file is here, too.
        assert_eq!(pulled.counters.manifest == 0, most == 0);
    }
    assert!(known.whole(&manifest.root()).is_some());
    known.remove(&manifest.root());
    assert!(known.whole(&manifest.root()).is_none());
    let part = Part::new(bytes.len());
    let (stream, _task) = served(&offer_model(&bytes, &header));
    let mut pull = pull_into(&part, bytes.len()).known(known);
    assert_eq!(soon(pull.over(stream)).await.unwrap().counters.skipped, 0);
}

#[tokio::test]
async fn a_known_file_that_has_changed_is_no_harm() {
    let bytes = noise(5_000_000, 10);
    let manifest = manifest_of(&bytes, Layout::of_file(bytes.len() as u64).unwrap());
    let mut stale = bytes.clone();
    stale[3] ^= 1;
    let known = Arc::new(Known::default());
    known.add(Bytes::new(stale), manifest);
    let part = Part::new(bytes.len());
    let (stream, _task) = served(&offer_file(&bytes));
    let mut pull = pull_into(&part, bytes.len()).known(known);
    let pulled = soon(pull.over(stream)).await.unwrap();
    assert!(part.state().bytes == bytes);
    assert_eq!(pulled.counters.pulled, 4 << 20);
}

#[tokio::test]
async fn equal_tensors_travel_once() {
    let (mut bytes, header) = model(&[500_000, 500_000, 100], 11);
    let start = header.data_start() as usize;
    bytes.copy_within(start..start + 500_000, start + 500_000);
    let pulled = check_whole(bytes.clone(), offer_model(&bytes, &header)).await;
    assert_eq!(pulled.counters.skipped, 500_000);
}

#[tokio::test]
async fn ranges_are_pulled_in_the_order_that_is_asked_for() {
    let (bytes, header) = model(&[1_000_000, 2_000_000, 500_000], 12);
    let manifest = manifest_of(&bytes, Layout::of_model(&header));
    let ranges: Vec<_> = [2, 0]
        .map(|at: usize| manifest.tensors()[at])
        .map(|part| part.offset..part.offset + part.length)
        .into();
    struct Ordered(Part, Mutex<Vec<Range<u64>>>);
    impl Sink for Ordered {
        fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.write_at(offset, bytes)
        }
        fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            self.0.read_at(offset, into)
        }
        fn verified(&self, range: Range<u64>) {
            self.1.lock().unwrap().push(range);
        }
    }
    let part = Arc::into_inner(Part::new(bytes.len())).unwrap();
    let sink = Arc::new(Ordered(part, Mutex::default()));
    let (stream, _task) = served(&offer_model(&bytes, &header));
    let object = ObjectRef::new(7, bytes.len() as u64).unwrap();
    let mut pull = Pull::new("server", "model", object, sink.clone(), &Budget::default())
        .manifest(manifest)
        .only(ranges.clone());
    let pulled = soon(pull.over(stream)).await.unwrap();
    assert_eq!(pulled.counters.pulled, 1_500_000);
    assert_eq!(pulled.counters.manifest, 0);
    assert_eq!(*sink.1.lock().unwrap(), ranges);
    for range in ranges {
        let range = range.start as usize..range.end as usize;
        assert!(sink.0.state().bytes[range.clone()] == bytes[range]);
    }
}

#[tokio::test]
async fn what_is_not_offered_to_this_peer_is_gone() {
    let bytes = noise(1000, 13);
    for (peer, id) in [("puller", 8), ("somebody else", 7)] {
        let (near, far) = pipe(1024);
        let shop = Shop(offer_file(&bytes));
        let task = tokio::spawn(async move { serve(far, &shop, &serving(peer)).await });
        let object = ObjectRef::new(id, 1000).unwrap();
        let part = Part::new(1000);
        let mut pull = Pull::new("the server", "the model", object, part, &Budget::default());
        let error = soon(pull.over(near)).await.unwrap_err();
        assert!(error.is_gone() && !error.reason.is_passing());
        assert_eq!(
            sentences(&error),
            format!(
                "the model could not be pulled from the server: object {id} is not offered here"
            )
        );
        soon(task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.bin");
    let bytes = noise(8_000_000, 14);
    std::fs::write(&path, &bytes).unwrap();
    let source = Arc::new(FileSource::open(&path).unwrap());
    let offered = Offered::new(source, Layout::of_file(bytes.len() as u64).unwrap());
    offered.manifest().await.unwrap();
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len());
    soon(pull.over(cut_after(&offered, 1_000_000)))
        .await
        .unwrap_err();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(8_000_001).unwrap();
    let (stream, _task) = served(&offered);
    let error = soon(pull.over(stream)).await.unwrap_err();
    let text = sentences(&error);
    for part in [
        "weights.bin",
        "the server",
        "the model of round 3",
        "was changed while it was sent",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!error.reason.is_passing() && error.hint().is_some());
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    struct Broken;
    impl Source for Broken {
        fn len(&self) -> u64 {
            1000
        }
        fn read_at(&self, _offset: u64, _into: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("a bad sector"))
        }
        fn name(&self) -> String {
            "update-3.bin".into()
        }
    }
    let bytes = noise(1000, 1);
    let layout = Layout::of_file(1000).unwrap();
    for offered in [
        Offered::new(Arc::new(Broken), layout.clone()),
        Offered::with_manifest(Arc::new(Broken), manifest_of(&bytes, layout)),
    ] {
        let (stream, task) = served(&offered);
        let error = soon(pull_into(&Part::new(1000), 1000).over(stream))
            .await
            .unwrap_err();
        let text = sentences(&error);
        assert!(
            text.contains("`update-3.bin` cannot be read: a bad sector"),
            "{text}"
        );
        // The stream closes cleanly at the other end.
        soon(task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn bytes_that_are_not_the_manifests_fail_by_peer_object_and_tensor() {
    let (bytes, header) = model(&[300_000, 200_000], 15);
    let manifest = manifest_of(&bytes, Layout::of_model(&header));
    let mut wrong = bytes.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let offered = Offered::with_manifest(Bytes::new(wrong), manifest);
    let (stream, _task) = served(&offered);
    let part = Part::new(bytes.len());
    let error = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap_err();
    let text = sentences(&error);
    assert!(
        text.contains("the model of round 3 could not be pulled from the server"),
        "{text}"
    );
    assert!(
        text.contains("(tensor 2 of 2)") && text.contains("pulled 2 times"),
        "{text}"
    );
    // What was right stays.
    assert_eq!(part.state().verified.bytes(), bytes.len() as u64 - 200_000);
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_complete() {
    let bytes = noise(20_000_000, 16);
    let offered = offer_file(&bytes);
    let part = Arc::new(Part {
        state: Mutex::new(Part::new(bytes.len()).state()),
        full_at: Some(13_000_000),
    });
    let (stream, task) = served(&offered);
    let error = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap_err();
    assert!(
        error.is_disk_full() && error.hint().is_some(),
        "{}",
        sentences(&error)
    );
    assert!(sentences(&error).contains("the model of round 3"));
    soon(task).await.unwrap().ok();
    let state = part.state();
    assert!(state.received.bytes() >= 8_000_000);
    // The disk has room again.
    let part = Part::from_state(state.clone());
    let (stream, _task) = served(&offered);
    let pulled = soon(pull_into(&part, bytes.len()).over(stream))
        .await
        .unwrap();
    assert!(part.state().bytes == bytes);
    assert_eq!(pulled.counters.skipped, state.received.bytes());
}

#[tokio::test]
async fn a_pull_that_is_dropped_goes_on_from_its_part() {
    let bytes = noise(12_000_000, 17);
    let offered = offer_file(&bytes);
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len());
    {
        let (stream, _task) = served(&offered);
        let mut over = std::pin::pin!(pull.over(stream));
        // Polled until something was written, then dropped wherever it is.
        while part.state().written == 0 {
            tokio::select! {
                biased;
                _ = &mut over => panic!("it is not that fast"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let (stream, _task) = served(&offered);
    soon(pull.over(stream)).await.unwrap();
    assert!(part.state().bytes == bytes);
}

/// A part whose first write waits until it is let through.
struct Gated {
    part: Arc<Part>,
    /// Whether the write has begun, and whether it may go on.
    gate: Mutex<(bool, bool)>,
    opened: Condvar,
}

impl Sink for Gated {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut gate = self.gate.lock().unwrap();
        gate.0 = true;
        drop(self.opened.wait_while(gate, |gate| !gate.1).unwrap());
        self.part.write_at(offset, bytes)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.part.read_at(offset, into)
    }
}

#[tokio::test]
async fn a_pull_that_is_dropped_while_it_writes_writes_nothing_twice() {
    let bytes = noise(12_000_000, 31);
    let manifest = manifest_of(&bytes, Layout::of_file(12_000_000).unwrap());
    let offered = Offered::with_manifest(Bytes::new(bytes.clone()), manifest.clone());
    let sink = Arc::new(Gated {
        part: Part::new(bytes.len()),
        gate: Mutex::default(),
        opened: Condvar::new(),
    });
    let object = ObjectRef::new(7, bytes.len() as u64).unwrap();
    let budget = Budget::default();
    let mut pull =
        Pull::new("the server", "the model", object, sink.clone(), &budget).manifest(manifest);
    {
        let (stream, _task) = served(&offered);
        let mut over = std::pin::pin!(pull.over(stream));
        while !sink.gate.lock().unwrap().0 {
            tokio::select! {
                biased;
                _ = &mut over => panic!("it waits to write"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    let (stream, _task) = served(&offered);
    let let_through = async {
        // Long enough for all that does not wait for the disk.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        sink.gate.lock().unwrap().1 = true;
        sink.opened.notify_all();
    };
    let (pulled, ()) = soon(async { tokio::join!(pull.over(stream), let_through) }).await;
    assert_eq!(pulled.unwrap().counters.bad_blocks, 0);
    assert!(sink.part.state().bytes == bytes);
    assert_eq!(sink.part.state().written, bytes.len() as u64);
    assert_eq!(budget.held(), 0);
}

#[tokio::test]
async fn transfers_that_begin_in_the_middle_of_a_frame_do_no_harm_to_it() {
    let bytes = noise(1_000_000, 32);
    let manifest = manifest_of(&bytes, Layout::of_file(1_000_000).unwrap());
    let (near, mut far) = pipe(1024);
    let (known, payload) = (manifest.clone(), bytes.clone());
    let (begun, mut middle) = watch::channel(false);
    let (others, mut joined) = watch::channel(false);
    let peer = tokio::spawn(async move {
        let mut head = [0; 32];
        far.read_exact(&mut head).await.unwrap();
        let transfer = Head::decode(&head).unwrap().transfer;
        let length = known.encoded().len() as u64;
        let mut offer = Head::new(Kind::Offer, transfer, length, 1_000_000);
        offer.payload = 32;
        far.write_all(&offer.encode()).await.unwrap();
        far.write_all(&known.root().0).await.unwrap();
        far.read_exact(&mut head).await.unwrap();
        for (at, piece) in payload.chunks(200_000).enumerate() {
            let mut data = Head::new(Kind::Data, transfer, at as u64 * 200_000, 0);
            data.payload = piece.len() as u32;
            far.write_all(&data.encode()).await.unwrap();
            let (first, rest) = piece.split_at(100_000);
            far.write_all(first).await.unwrap();
            if at == 2 {
                begun.send_replace(true);
                joined.wait_for(|joined| *joined).await.unwrap();
            }
            far.write_all(rest).await.unwrap();
        }
        far.read_exact(&mut head).await.unwrap();
        assert_eq!(Head::decode(&head).unwrap().kind, Kind::Close);
    });
    let part = Part::new(bytes.len());
    let object = ObjectRef::new(7, 1_000_000).unwrap();
    let budget = Budget::new(4 << 20);
    let mut pull =
        Pull::new("the server", "the model", object, part.clone(), &budget).manifest(manifest);
    let joining = async {
        middle.wait_for(|begun| *begun).await.unwrap();
        let shares: Vec<_> = (0..15).map(|n| budget.join(&format!("site-{n}"))).collect();
        others.send_replace(true);
        shares
    };
    let (pulled, _shares) = soon(async { tokio::join!(pull.over(near), joining) }).await;
    assert_eq!(pulled.unwrap().counters.bad_blocks, 0);
    assert!(part.state().bytes == bytes);
    soon(peer).await.unwrap();
}

#[tokio::test]
async fn a_file_that_was_complete_is_compared_and_not_pulled_again() {
    let bytes = noise(9_000_000, 33);
    let offered = offer_file(&bytes);
    for (damaged, pulled_again) in [(None, 0), (Some(5_000_000_usize), 4 << 20)] {
        let mut state = PartState {
            bytes: bytes.clone(),
            received: std::iter::once(0..9_000_000).collect(),
            ..PartState::default()
        };
        if let Some(at) = damaged {
            state.bytes[at] ^= 1;
        }
        let part = Part::from_state(state);
        let (stream, _task) = served(&offered);
        let pulled = soon(pull_into(&part, bytes.len()).over(stream))
            .await
            .unwrap();
        assert_eq!(pulled.counters.pulled, pulled_again);
        assert!(part.state().bytes == bytes);
    }
}

#[tokio::test]
async fn progress_is_told_up_to_the_end() {
    let bytes = noise(5_000_000, 18);
    let (tell, told) = watch::channel(Progress::default());
    let (stream, _task) = served(&offer_file(&bytes));
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len()).progress(tell);
    soon(pull.over(stream)).await.unwrap();
    let total = bytes.len() as u64;
    let expected = Progress {
        done: total,
        total,
        pulled: total,
    };
    assert_eq!(*told.borrow(), expected);
}

#[tokio::test]
async fn the_manifest_of_one_file_is_made_once_for_all_its_receivers() {
    let bytes = noise(3_000_000, 19);
    let source = Bytes::new(bytes.clone());
    let layout = Layout::of_file(bytes.len() as u64).unwrap();
    let offered = Offered::new(source.clone(), layout);
    let mut tasks = Vec::new();
    for _ in 0..24 {
        let (stream, _task) = served(&offered);
        let part = Part::new(bytes.len());
        tasks.push(tokio::spawn(async move {
            pull_into(&part, 3_000_000).over(stream).await.unwrap();
            part
        }));
    }
    for task in tasks {
        assert!(soon(task).await.unwrap().state().bytes == bytes);
    }
    let read = source.read.load(Ordering::Relaxed);
    assert_eq!(read, 25 * bytes.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_slow_receiver_delays_no_other() {
    let bytes = noise(10_000_000, 20);
    let offered = offer_file(&bytes);
    let budget = Budget::new(1 << 20);
    let shop = |offered: &Arc<Offered>| Shop(offered.clone());
    let serving = Serving {
        peer: "puller".into(),
        budget: budget.clone(),
        durations: Durations::default(),
    };
    // Twenty receivers that open, ask for everything they may, and read nothing.
    let mut stuck = Vec::new();
    for number in 0..20 {
        let (mut near, far) = pipe(1024);
        let (shop, serving) = (shop(&offered), serving.clone());
        tokio::spawn(async move { serve(far, &shop, &serving).await });
        let open = Head::new(Kind::Open, number, 7, bytes.len() as u64);
        near.write_all(&open.encode()).await.unwrap();
        let mut offer = [0; 64];
        soon(near.read_exact(&mut offer)).await.unwrap();
        let want = Head::new(Kind::Want, number, 0, bytes.len() as u64);
        near.write_all(&want.encode()).await.unwrap();
        stuck.push(near);
    }
    let (near, far) = pipe(64 * 1024);
    let shop = shop(&offered);
    tokio::spawn(async move { serve(far, &shop, &serving).await });
    let part = Part::new(bytes.len());
    let before = tokio::time::Instant::now();
    soon(pull_into(&part, bytes.len()).over(near))
        .await
        .unwrap();
    assert!(part.state().bytes == bytes);
    // On the test's own clock, which stands still while anybody works.
    assert!(before.elapsed() < Duration::from_secs(1));
    drop(stuck);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_reading_is_named() {
    let bytes = noise(10_000_000, 21);
    let (mut near, task) = served(&offer_file(&bytes));
    let open = Head::new(Kind::Open, 1, 7, bytes.len() as u64);
    near.write_all(&open.encode()).await.unwrap();
    let mut offer = [0; 64];
    near.read_exact(&mut offer).await.unwrap();
    let want = Head::new(Kind::Want, 1, 0, bytes.len() as u64);
    near.write_all(&want.encode()).await.unwrap();
    let error = task.await.unwrap().unwrap_err();
    assert!(matches!(error, ServeError::Stalled { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        "puller has read nothing of object 7 for 60 s"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_for_nothing_more_is_hung_up_on() {
    let bytes = noise(1000, 21);
    let (mut near, task) = served(&offer_file(&bytes));
    let open = Head::new(Kind::Open, 1, 7, 1000);
    near.write_all(&open.encode()).await.unwrap();
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "puller has asked for nothing more of object 7 for 60 s"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_and_named() {
    let (near, _far) = pipe(1024);
    let error = pull_into(&Part::new(1000), 1000)
        .over(near)
        .await
        .unwrap_err();
    assert!(error.reason.is_passing());
    assert_eq!(
        sentences(&error),
        "the model of round 3 could not be pulled from the server: nothing came for 60 s"
    );
}

/// Writes `bytes` one at a time, a second apart.
async fn trickle(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], sent: &AtomicUsize) {
    for byte in bytes {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_one_byte_a_second_is_waited_for_and_can_be_canceled() {
    let bytes = noise(100_000, 22);
    let layout = Layout::of_file(bytes.len() as u64).unwrap();
    let manifest = manifest_of(&bytes, layout);
    let (near, mut far) = pipe(1024);
    let sent = Arc::new(AtomicUsize::new(0));
    let counting = sent.clone();
    let (payload, known) = (bytes.clone(), manifest.clone());
    tokio::spawn(async move {
        let mut open = [0; 32];
        far.read_exact(&mut open).await.unwrap();
        let transfer = Head::decode(&open).unwrap().transfer;
        let mut offer = Head::new(Kind::Offer, transfer, known.encoded().len() as u64, 100_000);
        offer.payload = 32;
        far.write_all(&offer.encode()).await.unwrap();
        far.write_all(&known.root().0).await.unwrap();
        let mut data = Head::new(Kind::Data, transfer, 0, 0);
        data.payload = 100_000;
        let mut frame = data.encode().to_vec();
        frame.extend(payload);
        let mut want = [0; 32];
        far.read_exact(&mut want).await.unwrap();
        let (mut read, mut write) = tokio::io::split(far);
        let reads = async { while let Ok(1..) = read.read(&mut want).await {} };
        tokio::join!(trickle(&mut write, &frame, &counting), reads);
    });
    let cancel = CancellationToken::new();
    let part = Part::new(bytes.len());
    let mut pull = pull_into(&part, bytes.len())
        .manifest(manifest)
        .cancel(cancel.clone());
    let canceled_at = async {
        // An hour of it is no reason to give up.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        cancel.cancel();
        tokio::time::Instant::now()
    };
    let (ended, canceled_at) = tokio::join!(pull.over(near), canceled_at);
    let error = ended.unwrap_err();
    assert!(error.is_canceled(), "{}", sentences(&error));
    assert!(canceled_at.elapsed() < Duration::from_secs(1));
    let came = sent.load(Ordering::Relaxed);
    assert!((3000..=3600).contains(&came), "{came}");
    // Even these bytes are kept.
    assert!(part.state().received.bytes() >= came as u64 - 40);
}

#[tokio::test(start_paused = true)]
async fn abort_ends_a_transfer_and_its_retries_within_a_second() {
    let cancel = CancellationToken::new();
    let part = Part::new(1000);
    let mut pull = pull_into(&part, 1000).cancel(cancel.clone());
    let mut tries = 0;
    let retrying = pull.retrying(|| {
        tries += 1;
        async { Err::<BoxStream, _>("nobody listens") }
    });
    let canceled_at = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        cancel.cancel();
        tokio::time::Instant::now()
    };
    let (ended, canceled_at) = tokio::join!(retrying, canceled_at);
    assert!(ended.unwrap_err().is_canceled());
    assert!(canceled_at.elapsed() < Duration::from_secs(1));
    // The waits are 2.5 s on average once they are capped.
    assert!((20..200).contains(&tries), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn the_lease_ends_what_never_comes() {
    let mut pull = pull_into(&Part::new(1000), 1000);
    let retrying = pull.retrying(|| async { Err::<BoxStream, _>("nobody listens") });
    let error = retrying.await.unwrap_err();
    assert!(matches!(error.reason, PullFailure::LeaseEnded { .. }));
    let text = sentences(&error);
    assert!(
        text.contains("within the lease of 900 s: no connection: nobody listens"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_lease_ends_a_connection_that_is_never_made() {
    let mut pull = pull_into(&Part::new(1000), 1000);
    let retrying = pull.retrying(std::future::pending::<Result<BoxStream, &str>>);
    let day = Duration::from_secs(24 * 3600);
    let error = tokio::time::timeout(day, retrying).await.unwrap();
    let error = error.unwrap_err();
    assert!(matches!(error.reason, PullFailure::LeaseEnded { .. }));
}

#[tokio::test]
async fn late_frames_of_a_transfer_that_is_over_are_dropped_and_counted() {
    let bytes = noise(1000, 23);
    let manifest = manifest_of(&bytes, Layout::of_file(1000).unwrap());
    let (near, mut far) = pipe(64 * 1024);
    let root = manifest.root();
    let peer = tokio::spawn(async move {
        let mut open = [0; 32];
        far.read_exact(&mut open).await.unwrap();
        let transfer = Head::decode(&open).unwrap().transfer;
        let frame = |kind, transfer, offset, value, payload: &[u8]| {
            let mut head = Head::new(kind, transfer, offset, value);
            head.payload = payload.len() as u32;
            let mut frame = head.encode().to_vec();
            frame.extend_from_slice(payload);
            frame
        };
        let mut say = Vec::new();
        say.extend(frame(Kind::Data, transfer + 999, 0, 0, &[1; 500]));
        say.extend(frame(Kind::Offer, transfer, 50, 1000, &root.0));
        say.extend(frame(Kind::Refused, transfer + 999, 0, 1, b"gone"));
        far.write_all(&say).await.unwrap();
        let mut want = [0; 32];
        far.read_exact(&mut want).await.unwrap();
        assert_eq!(Head::decode(&want).unwrap().kind, Kind::Want);
        let data = frame(Kind::Data, transfer, 0, 0, &bytes);
        far.write_all(&data).await.unwrap();
        let mut close = [0; 32];
        far.read_exact(&mut close).await.unwrap();
        assert_eq!(Head::decode(&close).unwrap().kind, Kind::Close);
    });
    let part = Part::new(1000);
    let mut pull = pull_into(&part, 1000).manifest(manifest);
    // The offered manifest length is checked only against what a file may have.
    let pulled = soon(pull.over(near)).await.unwrap();
    assert_eq!(pulled.counters.late_frames, 2);
    assert_eq!(pulled.counters.surplus, 504);
    soon(peer).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_hung_up_on_and_named() {
    let bytes = noise(1000, 24);
    for (says, sentence) in [
        (vec![0xff; 32], "a frame of version 255"),
        (
            Head::new(Kind::Open, 1, 7, 1 << 63).encode().to_vec(),
            "the peer offers 9223372036854775808",
        ),
        (
            [
                Head::new(Kind::Open, 1, 7, 1000),
                Head::new(Kind::Want, 1, 0, 1),
            ]
            .iter()
            .flat_map(Head::encode)
            .collect(),
            "a wish before it was offered anything",
        ),
    ] {
        let (mut near, task) = served(&offer_file(&bytes));
        near.write_all(&says).await.unwrap();
        let error = soon(task).await.unwrap().unwrap_err();
        let text = sentences(&error);
        assert!(text.contains("puller") && text.contains(sentence), "{text}");
    }
}

#[tokio::test]
async fn several_pulls_follow_each_other_on_one_stream() {
    let bytes = noise(100_000, 25);
    let (mut near, task) = served(&offer_file(&bytes));
    for transfer in 1..4u64 {
        let open = Head::new(Kind::Open, transfer, 7, 100_000);
        near.write_all(&open.encode()).await.unwrap();
        let mut offer = [0; 64];
        soon(near.read_exact(&mut offer)).await.unwrap();
        let want = Head::new(Kind::Want, transfer, 10, 99_000);
        near.write_all(&want.encode()).await.unwrap();
        let mut data = vec![0; 32 + 99_000];
        soon(near.read_exact(&mut data)).await.unwrap();
        assert!(data[32..] == bytes[10..99_010]);
        let close = Head::new(Kind::Close, transfer, 0, 0);
        near.write_all(&close.encode()).await.unwrap();
    }
    near.write_all(&Head::new(Kind::Want, 2, 0, 5).encode())
        .await
        .unwrap();
    drop(near);
    let served = soon(task).await.unwrap().unwrap();
    assert_eq!((served.complete, served.late_frames), (3, 1));
}

#[test]
fn errors_say_what_kind_they_are() {
    let error = |reason| PullError {
        peer: "site-1".into(),
        object: "the update".into(),
        reason,
    };
    let refused = |code| {
        PullFailure::Transfer(TransferError::Refused {
            code,
            sentence: String::new(),
        })
    };
    assert!(refused(RefusalCode::Busy).is_passing());
    assert!(!refused(RefusalCode::Changed).is_passing());
    use firesteel_base::FailureCode as Code;
    let full = io::Error::from(io::ErrorKind::StorageFull);
    for (reason, code) in [
        (PullFailure::Canceled, Code::Aborted),
        (PullFailure::Sink(full), Code::DiskFull),
        (PullFailure::Connect("x".into()), Code::Disconnected),
        (refused(RefusalCode::Changed), Code::Malformed),
        (refused(RefusalCode::Busy), Code::Disconnected),
    ] {
        assert_eq!(error(reason).failure_code(), code);
    }
}
