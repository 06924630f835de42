//! The document of all routes is the one that is committed.

use std::path::Path;

#[test]
fn the_committed_document_is_what_the_server_serves() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/reference/openapi.json");
    let made = firesteel_daemon::rest::document();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "docs/reference/openapi.json is not what the routes say: run this test with \
         UPDATE_EXPECT=1 and look at what changed"
    );
}

#[test]
fn every_name_in_the_document_leads_somewhere() {
    let document: serde_json::Value =
        serde_json::from_str(&firesteel_daemon::rest::document()).unwrap();
    let mut names = Vec::new();
    references(&document, &mut names);
    assert!(names.len() > 20);
    for name in names {
        let pointer = name.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{name} is not there");
    }
}

fn references(value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == "$ref" => names.push(text.to_owned()),
                    _ => references(value, names),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| references(v, names)),
        _ => {}
    }
}
