//! The system calls for which there is no safe wrapper.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// What a process changes about itself before it becomes another program.
#[derive(Debug, Default)]
pub struct Before {
    /// Leave these namespaces for new ones; with a user namespace, this user is
    /// root in it.
    pub unshare: Option<Spaces>,
    /// Move into this network namespace.
    pub network: Option<File>,
    /// No file may grow beyond this; the signal that goes with it is ignored, so
    /// that a write fails as on a full disk.
    pub file_limit: Option<u64>,
}

/// Namespaces to be left, and the maps of a user namespace.
#[derive(Debug)]
pub struct Spaces {
    flags: UnshareFlags,
    maps: Option<[(CString, String); 3]>,
}

impl Spaces {
    /// Network and mounts; with them users, unless this is root already.
    pub fn network_and_mounts() -> Self {
        let flags = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
        let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
        if user.is_root() {
            return Self { flags, maps: None };
        }
        let entry = |file: &str, text: String| {
            let path = CString::new(format!("/proc/self/{file}")).expect("a path without NUL");
            (path, text)
        };
        let maps = [
            entry("setgroups", "deny".to_owned()),
            entry("uid_map", format!("0 {} 1", user.as_raw())),
            entry("gid_map", format!("0 {} 1", group.as_raw())),
        ];
        Self {
            flags: flags | UnshareFlags::NEWUSER,
            maps: Some(maps),
        }
    }

    /// Leaves them. Only for a process with a single thread; allocates nothing,
    /// so that it may be called between fork and exec.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: no file descriptors are unshared, which is what the function
        // is unsafe for.
        unsafe { rustix::thread::unshare_unsafe(self.flags) }?;
        for (path, text) in self.maps.iter().flatten() {
            let file = rustix::fs::open(
                path,
                rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            rustix::io::write(&file, text.as_bytes())?;
        }
        // Mounts are seen by nobody outside from here on.
        rustix::mount::mount_change(
            c"/",
            rustix::mount::MountPropagationFlags::PRIVATE
                | rustix::mount::MountPropagationFlags::REC,
        )?;
        Ok(())
    }
}

/// Has a command change itself before it starts, and end when the thread that
/// starts it does.
pub fn prepare(command: &mut Command, before: Before) {
    let apply = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if let Some(spaces) = &before.unshare {
            spaces.enter()?;
        }
        if let Some(network) = &before.network {
            enter_network(network.as_fd())?;
        }
        if let Some(limit) = before.file_limit {
            // SAFETY: a system call with two integers.
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
            let limit = Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            };
            rustix::process::setrlimit(Resource::Fsize, limit)?;
        }
        Ok(())
    };
    // SAFETY: `apply` makes system calls and touches no lock and no allocator:
    // all its strings were made before.
    unsafe { command.pre_exec(apply) };
}

/// Moves the calling thread into a network namespace.
pub fn enter_network(network: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Moves the calling thread into a new network namespace, and gives a handle to it.
pub fn new_network() -> io::Result<File> {
    // SAFETY: a network namespace is nothing that other threads rely on: only
    // this one leaves.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    File::open("/proc/thread-self/ns/net")
}

/// A network device whose cable is this file: what the kernel sends over it is
/// read, what is written arrives.
pub fn tun(name: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("both lie below 2^15");
    ioctl(file.as_fd(), libc::TUNSETIFF, &mut request)?;
    Ok(file)
}

/// Gives a device of this thread's namespace its addresses and starts it.
pub fn configure(name: &str, own: Ipv4Addr, peer: Ipv4Addr, mtu: u16) -> io::Result<()> {
    let socket = any_socket()?;
    for (what, address) in [
        (libc::SIOCSIFADDR, own),
        (libc::SIOCSIFDSTADDR, peer),
        (libc::SIOCSIFNETMASK, Ipv4Addr::BROADCAST),
    ] {
        let mut request = request(name);
        request.ifr_ifru.ifru_addr = address_of(address);
        ioctl(socket.as_fd(), what, &mut request)?;
    }
    let mut wanted = request(name);
    wanted.ifr_ifru.ifru_mtu = mtu.into();
    ioctl(socket.as_fd(), libc::SIOCSIFMTU, &mut wanted)?;
    let mut wanted = request(name);
    // The emulated queue is the one that drops: this one should hold any burst.
    // In a user namespace the kernel leaves it at 500 packets.
    wanted.ifr_ifru.ifru_metric = DEVICE_QUEUE;
    match ioctl(socket.as_fd(), libc::SIOCSIFTXQLEN, &mut wanted) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        done => done?,
    }
    start(name)
}

/// Packets that wait in a device for the thread that reads them.
const DEVICE_QUEUE: libc::c_int = 10_000;

/// Starts a device of this thread's namespace.
pub fn start(name: &str) -> io::Result<()> {
    let socket = any_socket()?;
    let mut request = request(name);
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("both lie below 2^15");
    ioctl(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request)
}

/// A socket, for requests that want any.
fn any_socket() -> io::Result<std::net::UdpSocket> {
    std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: a C struct of integers, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < libc::IFNAMSIZ, "`{name}` is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).expect("names of devices are ASCII");
    }
    request
}

fn address_of(address: Ipv4Addr) -> libc::sockaddr {
    let v4 = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("a small number"),
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from(address).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain bytes of the same size, made for this exchange.
    unsafe { std::mem::transmute(v4) }
}

fn ioctl(file: BorrowedFd<'_>, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request used here takes an `ifreq`, which outlives the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), what, std::ptr::from_mut(request)) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Mounts a tmpfs of so many bytes.
pub fn mount_tmpfs(on: &Path, bytes: u64) -> io::Result<()> {
    let options = CString::new(format!("size={bytes},mode=0700")).expect("no NUL in it");
    rustix::mount::mount(
        c"firesteel-rig",
        on,
        c"tmpfs",
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV,
        &*options,
    )?;
    Ok(())
}

/// Takes a mount away, at the latest when the last file on it is closed.
pub fn unmount(from: &Path) -> io::Result<()> {
    rustix::mount::unmount(from, rustix::mount::UnmountFlags::DETACH)?;
    Ok(())
}
