//! Models over long, lossy and narrow lines. How fast is for `make bench`, part
//! `wan`; here they arrive whole, for about their bytes.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests, too")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use firesteel_base::Durations;
use firesteel_net::Options;
use firesteel_net::pull::Progress;
use firesteel_net_tests::{Arriving, Identities, Server, Site, beat, model_file};
use firesteel_rig::wait::{until, within};
use firesteel_rig::{Direction, Link, Place, Space, Wan, own_space};
use firesteel_store::Objects;
use firesteel_transfer::ObjectRef;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const MS: Duration = Duration::from_millis(1);
const KIB: u64 = 1024;

/// A server in one place, a site in another, and a model that is offered to it.
struct Setup {
    wan: Wan,
    far: Place,
    site: Arc<Site>,
    object: ObjectRef,
    model: PathBuf,
    objects: Objects,
    far_runtime: Runtime,
    _server: Server,
    _near: (Runtime, Place),
    _folder: tempfile::TempDir,
}

impl Setup {
    fn new(space: &Space, link: Link, each: u64) -> Self {
        let (near, far) = (space.need(Place::new()), space.need(Place::new()));
        let wan = space.need(Wan::join(&near, &far, link, 11));
        let runtime = || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).enable_all().build().unwrap()
        };
        let (near_runtime, far_runtime) = (near.run(runtime), far.run(runtime));
        let folder = tempfile::tempdir().unwrap();
        let identities = Identities::new().unwrap();
        let (options, durations) = (Options::default(), Durations::default());
        let server = Server::start(
            (wan.near(), 0).into(),
            identities.server().unwrap(),
            options.clone(),
            durations,
        );
        let server = near.run(|| near_runtime.block_on(server)).unwrap();
        let model = model_file(folder.path(), 8, each, 3).unwrap();
        let object = server.shelf.offer("site-1", 1, &model).unwrap();
        let identity = identities.site("site-1").unwrap();
        let site = Site::new(server.address, identity, options, durations);
        Self {
            objects: Objects::open(&folder.path().join("objects")).unwrap(),
            site: Arc::new(site),
            _server: server,
            _near: (near_runtime, near),
            _folder: folder,
            far_runtime,
            object,
            model,
            wan,
            far,
        }
    }

    /// Does something where the site is.
    fn at_the_site<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.far.run(|| self.far_runtime.block_on(work))
    }

    /// Starts the pull; its progress, and its end as a file that is whole.
    async fn pull(
        &self,
    ) -> (
        watch::Receiver<Progress>,
        tokio::task::JoinHandle<Arc<Arriving>>,
    ) {
        let (told, progress) = watch::channel(Progress::default());
        let room = Arriving::new(&self.objects, self.object).unwrap();
        let mut pull = self
            .site
            .pull(self.object, Arc::clone(&room))
            .progress(told);
        let site = Arc::clone(&self.site);
        let task = tokio::spawn(async move {
            pull.retrying(|| site.stream()).await.unwrap();
            room
        });
        (progress, task)
    }
}

fn is_whole(room: Arc<Arriving>, model: &Path) {
    let received = room.finish().unwrap();
    let sent = std::fs::read(model).unwrap();
    assert!(received.bytes() == sent, "it is not the file that was sent");
}

#[test]
fn slow_a_model_crosses_a_long_and_lossy_line_for_about_its_bytes() {
    let Some(space) = own_space!() else { return };
    let link = Link::round_trip(100 * MS).loss(0.001);
    let setup = Setup::new(&space, link, 512 * KIB);
    setup.at_the_site(async {
        let (_, task) = setup.pull().await;
        is_whole(within(task).await.unwrap(), &setup.model);
    });
    let there = setup.wan.counts(Direction::There);
    // Headers are 4 %; the rest is for the handshakes and what is sent again.
    assert!(
        there.bytes < setup.object.length * 112 / 100,
        "{there:?} for {}",
        setup.object.length
    );
}

#[test]
fn slow_heartbeats_do_not_wait_for_a_model_on_a_narrow_line() {
    let Some(space) = own_space!() else { return };
    // A model takes some seconds at 4 Mbit/s.
    let link = Link::round_trip(200 * MS)
        .loss(0.01)
        .rate(4_000_000, 200 * MS);
    let setup = Setup::new(&space, link, 256 * KIB);
    setup.at_the_site(async {
        let session = within(setup.site.session()).await.unwrap();
        let mut control = session.control().expect("nobody has taken it");
        let (mut progress, task) = setup.pull().await;
        let begun = progress.wait_for(|progress| progress.pulled > 0);
        within(begun).await.unwrap();
        // Heartbeats come back while it is on its way: not behind it.
        for number in 0..5 {
            let took = within(beat(&mut control)).await.unwrap();
            eprintln!("heartbeat {number}: {took:?}");
        }
        assert!(!task.is_finished(), "the model came before the heartbeats");
        let room = within(within(task)).await.unwrap();
        is_whole(room, &setup.model);
    });
}

#[test]
fn slow_a_line_that_is_dead_for_a_while_costs_nothing_that_had_arrived() {
    let Some(space) = own_space!() else { return };
    let link = Link::round_trip(20 * MS).rate(20_000_000, 100 * MS);
    let setup = Setup::new(&space, link, 512 * KIB);
    setup.at_the_site(async {
        let (mut progress, task) = setup.pull().await;
        let begun = progress.wait_for(|progress| progress.pulled >= 1024 * KIB);
        within(begun).await.unwrap();
        let lost = setup.wan.counts(Direction::There).lost;
        setup.wan.set(Link::dead());
        // Until both ends have noticed: something that was sent is lost.
        until(|| (setup.wan.counts(Direction::There).lost > lost + 2).then_some(())).await;
        setup.wan.set(link);
        is_whole(within(task).await.unwrap(), &setup.model);
    });
    let there = setup.wan.counts(Direction::There);
    assert!(
        there.bytes < setup.object.length * 125 / 100,
        "{there:?} for {}",
        setup.object.length
    );
}

#[test]
fn slow_pings_on_a_long_line_have_packets_behind_them_that_show_a_loss() {
    const PINGS: u64 = 10;
    let Some(space) = own_space!() else { return };
    let short = Link::round_trip(20 * MS);
    let setup = Setup::new(&space, short, KIB);
    let packets = || {
        let [there, back] = [Direction::There, Direction::Back].map(|way| setup.wan.counts(way));
        there.packets + back.packets
    };
    setup.at_the_site(async {
        let session = within(setup.site.session()).await.unwrap();
        within(session.ping()).await.unwrap();
        let before = packets();
        for _ in 0..PINGS {
            within(session.ping()).await.unwrap();
        }
        // A ping, its answer, and what TCP says of them.
        let sent = packets() - before;
        assert!(sent <= 5 * PINGS, "{sent} packets for {PINGS} pings");

        setup.wan.set(Link::round_trip(120 * MS));
        // The first finds out how long the line is.
        within(session.ping()).await.unwrap();
        let before = packets();
        for _ in 0..PINGS {
            within(session.ping()).await.unwrap();
        }
        // Three more behind each, and three behind each answer.
        until(|| (packets() - before >= 8 * PINGS).then_some(())).await;
    });
}
