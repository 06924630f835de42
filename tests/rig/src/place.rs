//! A place on the emulated network: a network namespace, for threads and
//! processes that shall be far from others.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus};
use std::thread::{Builder, JoinHandle};

use crate::{RigError, sys};

/// A network namespace with a loopback device; [`crate::Wan`] joins two of them.
///
/// It has no name and is no file: it is gone when the last of its threads,
/// sockets and devices is.
#[derive(Debug)]
pub struct Place {
    network: File,
}

impl Place {
    /// A new one, in which nobody is and from which nothing can be reached.
    pub fn new() -> Result<Self, RigError> {
        let made = std::thread::scope(|scope| {
            let thread = Builder::new().spawn_scoped(scope, || {
                let network = sys::new_network()?;
                sys::start("lo")?;
                Ok(network)
            })?;
            joined(thread.join())
        });
        let network =
            made.map_err(|source: io::Error| RigError::of("a network namespace", source))?;
        Ok(Self { network })
    }

    /// Runs something here and waits for it. Sockets it makes belong to this
    /// place for good, and so do the threads it starts: a tokio runtime that is
    /// built here lives here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            joined(
                scope
                    .spawn(|| {
                        self.enter();
                        work()
                    })
                    .join(),
            )
        })
    }

    /// Runs something here in a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let network = self.handle();
        std::thread::spawn(move || {
            sys::enter_network(network.as_fd()).expect("the place is there while it is held");
            work()
        })
    }

    /// Starts a program here. It ends with the returned value, and with the
    /// thread that calls this.
    pub fn start(&self, mut command: Command) -> io::Result<Process> {
        let before = sys::Before {
            network: Some(self.handle()),
            ..Default::default()
        };
        sys::prepare(&mut command, before);
        Ok(Process {
            child: command.spawn()?,
        })
    }

    fn enter(&self) {
        sys::enter_network(self.network.as_fd()).expect("the place is there while it is held");
    }

    fn handle(&self) -> File {
        self.network
            .try_clone()
            .expect("a descriptor can be copied")
    }
}

/// The value of a thread, or its panic in this one.
fn joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A program in a [`Place`]; it is ended when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
