//! Snapshots of a job and of its workflow: refused, or the same after being
//! written and read.
#![no_main]

use firesteel_wire::snapshot::JobSnapshot;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(snapshot) = JobSnapshot::decode(bytes) {
        let again = JobSnapshot::decode(&snapshot.encode()).expect("what was written can be read");
        assert_eq!(again, snapshot);
    }
});
