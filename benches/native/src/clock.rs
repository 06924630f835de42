//! CPU and wall time.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// CPU seconds of all threads of this process, its work in the kernel included.
pub fn process_cpu_s() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// CPU and wall seconds since it was made.
pub struct Watch {
    wall: Instant,
    cpu_s: f64,
}

impl Watch {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu_s: process_cpu_s(),
        }
    }

    /// What has passed.
    pub fn read(&self) -> Spent {
        Spent {
            cpu_s: process_cpu_s() - self.cpu_s,
            wall_s: self.wall.elapsed().as_secs_f64(),
        }
    }
}

/// Time that something took.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
pub struct Spent {
    /// CPU seconds of the process.
    pub cpu_s: f64,
    /// Seconds on the wall.
    pub wall_s: f64,
}
