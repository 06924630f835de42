//! Models that are pulled over mutual TLS through a proxy that cuts, stalls and
//! slows: they arrive whole, or the error says whose fault it is.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firesteel_base::Durations;
use firesteel_net::Options;
use firesteel_net::pull::{Progress, Pull, PullError, Pulled};
use firesteel_net_tests::{Arriving, Identities, Server, Site, model_file};
use firesteel_rig::wait::{until, within};
use firesteel_rig::{Cut, Direction, Proxy};
use firesteel_store::Objects;
use firesteel_transfer::{Budget, ObjectRef};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1024 * 1024;

/// What a cut may cost in bytes, of those that are on their way and of the
/// handshake: ten of them are 2 % of 1 GiB.
const PER_CUT: u64 = 2 * MIB;

fn options(durations: Durations) -> Options {
    let mut options = Options::default();
    options.durations = durations;
    options
}

/// A server, a site that dials it through a proxy, and a model.
struct Setup {
    folder: tempfile::TempDir,
    identities: Identities,
    objects: Objects,
    server: Server,
    proxy: Proxy,
    site: Arc<Site>,
    model: PathBuf,
    object: ObjectRef,
    durations: Durations,
}

impl Setup {
    async fn new(tensors: u64, each: u64) -> Self {
        Self::with(tensors, each, Durations::default()).await
    }

    async fn with(tensors: u64, each: u64, durations: Durations) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identities = Identities::new().unwrap();
        let options = options(durations);
        let address = "127.0.0.1:0".parse().unwrap();
        let server = identities.server().unwrap();
        let server = Server::start(address, server, options.clone(), durations)
            .await
            .unwrap();
        let proxy = Proxy::start(server.address).await.unwrap();
        let identity = identities.site("site-1").unwrap();
        let site = Site::new(proxy.address(), identity, options, durations);
        let model = model_file(folder.path(), tensors, each, 7).unwrap();
        let object = server.shelf.offer("site-1", 1, &model).unwrap();
        Self {
            objects: Objects::open(&folder.path().join("objects")).unwrap(),
            folder,
            identities,
            server,
            proxy,
            site: Arc::new(site),
            model,
            object,
            durations,
        }
    }

    fn room(&self) -> Arc<Arriving> {
        Arriving::new(&self.objects, self.object).unwrap()
    }

    /// Pulls it to the end, whatever happens on the way.
    async fn pull(&self) -> Pulled {
        let room = self.room();
        let mut pull = self.site.pull(self.object, Arc::clone(&room));
        let pulled = within(pull.retrying(|| self.site.stream())).await.unwrap();
        drop(pull);
        self.is_whole(room);
        pulled
    }

    /// A pull that goes on by itself; what becomes of it, and how far it is.
    fn start(&self, change: impl FnOnce(Pull) -> Pull) -> Running {
        let (told, progress) = watch::channel(Progress::default());
        let room = self.room();
        let mut pull = change(self.site.pull(self.object, Arc::clone(&room))).progress(told);
        let site = Arc::clone(&self.site);
        let task = tokio::spawn(async move { pull.retrying(|| site.stream()).await });
        Running {
            progress,
            task,
            room,
        }
    }

    fn is_whole(&self, room: Arc<Arriving>) {
        let received = room.finish().unwrap();
        let sent = std::fs::read(&self.model).unwrap();
        assert!(received.bytes() == sent, "it is not the file that was sent");
    }
}

struct Running {
    progress: watch::Receiver<Progress>,
    task: tokio::task::JoinHandle<Result<Pulled, PullError>>,
    room: Arc<Arriving>,
}

impl Running {
    /// Waits until so many bytes have come.
    async fn came(&mut self, bytes: u64) {
        let reached = self.progress.wait_for(|progress| progress.pulled >= bytes);
        within(reached).await.unwrap();
    }

    async fn end(self) -> (Result<Pulled, PullError>, Arc<Arriving>) {
        (within(self.task).await.unwrap(), self.room)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_arrives_whole_and_costs_little_more_than_its_bytes() {
    let setup = Setup::new(16, MIB).await;
    let pulled = setup.pull().await;
    assert_eq!(pulled.counters.pulled, setup.object.length);
    let passed = setup.proxy.passed(Direction::Back);
    assert!(
        passed < setup.object.length * 102 / 100,
        "{passed} bytes for {}",
        setup.object.length
    );
    assert!(setup.proxy.passed(Direction::There) < MIB / 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_ten_cuts_cost_little_more_than_the_bytes() {
    let setup = Setup::new(24, 4 * MIB).await;
    let cuts = (1..=10).map(|number| setup.object.length / 11 * number);
    setup.proxy.cut_at(Direction::Back, cuts);
    let pulled = setup.pull().await;
    assert_eq!(setup.proxy.cuts(), 10);
    let passed = setup.proxy.passed(Direction::Back);
    let surplus = passed - setup.object.length;
    eprintln!(
        "ten cuts in {} bytes: {surplus} more, {:?}",
        setup.object.length, pulled.counters
    );
    assert!(surplus < 10 * PER_CUT, "{surplus} bytes for ten cuts");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_pulled_over_whatever_session_the_site_has() {
    let setup = Setup::new(8, MIB).await;
    let offered = setup.site.shelf().offer("server", 5, &setup.model).unwrap();
    let room = Arriving::new(&setup.objects, offered).unwrap();
    let mut pull = Pull::new(
        "site-1",
        "the update of site-1",
        offered,
        Arc::clone(&room) as _,
        &Budget::default(),
    );
    setup.proxy.cut_at(Direction::There, [2 * MIB, 5 * MIB]);
    // The site keeps a session, as an agent does.
    let site = Arc::clone(&setup.site);
    let keeping = tokio::spawn(async move {
        loop {
            // Dials where there is none, or the one there is over.
            if let Ok(session) = site.session().await {
                session.closed().await;
            }
            let _ = site.stream().await;
        }
    });
    let pulled = within(pull.retrying(|| setup.server.stream("site-1")))
        .await
        .unwrap();
    keeping.abort();
    drop(pull);
    setup.is_whole(room);
    assert_eq!(setup.proxy.cuts(), 2);
    let passed = setup.proxy.passed(Direction::There);
    assert!(
        passed < offered.length + 2 * PER_CUT,
        "{passed}: {pulled:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_process_ended_is_not_pulled_again() {
    let setup = Setup::new(16, MIB).await;
    setup.proxy.slow(Direction::Back, 40 * MIB);
    let mut first = setup.start(|pull| pull);
    first.came(6 * MIB).await;
    first.task.abort();
    assert!(within(first.task).await.unwrap_err().is_cancelled());
    setup.proxy.free(Direction::Back);
    // The receiving end of the process is gone, with what it held in memory.
    until(|| (Arc::strong_count(&first.room) == 1).then_some(())).await;
    drop(first.room);
    let pulled = setup.pull().await;
    let counters = pulled.counters;
    eprintln!("after the restart: {counters:?}");
    assert!(counters.skipped >= 4 * MIB, "{counters:?}");
    assert!(counters.pulled <= setup.object.length - counters.skipped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_peer_is_tried_anew_and_then_succeeds() {
    let durations = Durations {
        idle: Duration::from_millis(500),
        ..Durations::default()
    };
    let setup = Setup::with(16, MIB, durations).await;
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut running = setup.start(|pull| pull);
    running.came(2 * MIB).await;
    setup.proxy.stall(Direction::Back);
    let before = setup.proxy.accepted();
    until(|| (setup.proxy.accepted() > before).then_some(())).await;
    setup.proxy.free(Direction::Back);
    let (pulled, room) = running.end().await;
    pulled.unwrap();
    setup.is_whole(room);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stays_silent_is_named_with_the_object() {
    let durations = Durations {
        idle: Duration::from_millis(300),
        lease: Duration::from_secs(1),
        connect: Duration::from_secs(1),
        ..Durations::default()
    };
    let setup = Setup::with(16, MIB, durations).await;
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut running = setup.start(|pull| pull);
    running.came(2 * MIB).await;
    setup.proxy.stall(Direction::Back);
    let (pulled, _room) = running.end().await;
    let error = pulled.unwrap_err();
    assert_eq!(
        (error.peer.as_str(), error.object.as_str()),
        ("server", "model 1")
    );
    let text = error.to_string();
    assert!(
        text.contains("server") && text.contains("model 1"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_one_byte_a_second_delays_nobody_else() {
    let durations = Durations {
        idle: Duration::from_secs(1),
        lease: Duration::from_secs(2),
        connect: Duration::from_secs(1),
        ..Durations::default()
    };
    let setup = Setup::with(16, MIB, durations).await;
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut slow = setup.start(|pull| pull);
    slow.came(MIB).await;
    setup.proxy.slow(Direction::Back, 1);

    // Another site with a line of its own, at the same time.
    let options = options(setup.durations);
    let identity = setup.identities.site("site-2").unwrap();
    let other = Site::new(setup.server.address, identity, options, setup.durations);
    let object = setup.server.shelf.offer("site-2", 2, &setup.model).unwrap();
    let room = Arriving::new(&setup.objects, object).unwrap();
    let mut pull = other.pull(object, Arc::clone(&room));
    within(pull.retrying(|| other.stream())).await.unwrap();
    assert!(!slow.task.is_finished() || slow.progress.borrow().done < object.length);
    drop(pull);
    setup.is_whole(room);

    let (pulled, _room) = slow.end().await;
    let error = pulled.unwrap_err();
    assert_eq!(error.peer, "server");
    assert!(setup.folder.path().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_a_stalled_transfer() {
    // Without it, the pull would wait for a minute.
    let setup = Setup::new(16, MIB).await;
    let cancel = CancellationToken::new();
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut running = setup.start(|pull| pull.cancel(cancel.clone()));
    running.came(MIB).await;
    setup.proxy.stall(Direction::Back);
    let asked = Instant::now();
    cancel.cancel();
    let (pulled, _room) = running.end().await;
    eprintln!("canceled while stalled: {:?}", asked.elapsed());
    assert!(pulled.unwrap_err().is_canceled());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_the_tries_of_a_refused_one() {
    let setup = Setup::new(1, MIB).await;
    setup.proxy.refuse().await;
    let cancel = CancellationToken::new();
    let running = setup.start(|pull| pull.cancel(cancel.clone()));
    tokio::task::yield_now().await;
    let asked = Instant::now();
    cancel.cancel();
    let (pulled, _room) = running.end().await;
    eprintln!("canceled while refused: {:?}", asked.elapsed());
    assert!(pulled.unwrap_err().is_canceled());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_a_handshake_that_hangs() {
    let setup = Setup::new(1, MIB).await;
    setup.proxy.stall(Direction::Back);
    let cancel = CancellationToken::new();
    let running = setup.start(|pull| pull.cancel(cancel.clone()));
    until(|| (setup.proxy.accepted() == 1).then_some(())).await;
    cancel.cancel();
    let (pulled, _room) = running.end().await;
    assert!(pulled.unwrap_err().is_canceled());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_for_a_while_is_waited_for() {
    let setup = Setup::new(16, MIB).await;
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut running = setup.start(|pull| pull);
    running.came(2 * MIB).await;
    setup.proxy.refuse().await;
    setup.proxy.cut(Cut::Reset);
    setup.proxy.free(Direction::Back);
    let before = running.progress.borrow().pulled;
    assert!(!running.task.is_finished() && before < setup.object.length);
    setup.proxy.admit().await;
    let (pulled, room) = running.end().await;
    pulled.unwrap();
    setup.is_whole(room);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_in_the_middle_is_a_cut() {
    for end in ["half", "close"] {
        let setup = Setup::new(16, MIB).await;
        setup.proxy.slow(Direction::Back, 20 * MIB);
        let mut running = setup.start(|pull| pull);
        running.came(2 * MIB).await;
        match end {
            "half" => setup.proxy.half_close(Direction::Back),
            _ => setup.proxy.cut(Cut::Close),
        }
        setup.proxy.free(Direction::Back);
        let (pulled, room) = running.end().await;
        pulled.unwrap();
        setup.is_whole(room);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_offered_to_a_site_is_not_there_for_it() {
    let setup = Setup::new(1, MIB).await;
    let options = Options::default();
    let identity = setup.identities.site("site-2").unwrap();
    let other = Site::new(setup.server.address, identity, options, setup.durations);
    let mut pull = other.pull(setup.object, setup.room());
    let error = within(pull.retrying(|| other.stream())).await.unwrap_err();
    assert!(error.is_gone(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_leaves_nothing_running() {
    let setup = Setup::new(16, MIB).await;
    setup.proxy.slow(Direction::Back, 20 * MIB);
    let mut running = setup.start(|pull| pull);
    running.came(MIB).await;
    running.task.abort();
    // The server's end of it notices and sends no more than was on its way.
    setup.proxy.free(Direction::Back);
    within(async {
        tokio::select! {
            _ = running.task => {}
            () = pending() => {}
        }
    })
    .await;
    until(|| (Arc::strong_count(&running.room) == 1).then_some(())).await;
    setup.pull_again_is_possible(running.room).await;
}

impl Setup {
    /// The name is free again, and the rest comes.
    async fn pull_again_is_possible(&self, room: Arc<Arriving>) {
        drop(room);
        self.pull().await;
    }
}
