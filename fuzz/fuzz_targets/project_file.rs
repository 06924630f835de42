//! A project file: read, or refused in one line that names the file.
#![no_main]

use std::path::Path;

use firesteel_pki::Project;
use firesteel_pki::project::Adding;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let file = Path::new("project.yml");
    match Project::parse(text, file) {
        Ok(mut project) => {
            assert!(project.server().is_some());
            for participant in &project.participants {
                // Each becomes a folder.
                assert!(!participant.name.contains(['/', '\\', '\0']));
                assert!(!participant.name.starts_with('.'));
            }
            let _ = project.add(text, file, Adding::Client);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.starts_with("project.yml") && !text.contains('\n'), "{text}");
        }
    }
});
