//! The job spec: refused with the field that is wrong, or the same after being
//! written and read, and usable.
#![no_main]

use firesteel_wire::spec::JobSpec;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(spec) = JobSpec::parse(bytes) else {
        return;
    };
    let written = spec.to_json();
    let again = JobSpec::parse(&written).expect("what was written can be read");
    assert_eq!(again.to_json(), written);
    for site in spec.site_names() {
        let _ = spec.settings(&site);
    }
    let _ = spec.fedavg();
});
