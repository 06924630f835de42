//! A job bundle: refused with nothing left on the disk, or unpacked as its list
//! says and found again as it is. Half of the time the list is truly signed, so
//! that what stands behind the signature is reached.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use firesteel_pki::bundle::{BundleError, Limits, Taker, open, unpack};
use firesteel_pki::{Kit, Project, Purpose, Signer, provision};

struct Federation {
    kit: Kit,
    signer: Signer,
    folder: tempfile::TempDir,
}

fn federation() -> &'static Federation {
    static MADE: OnceLock<Federation> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let project = "api_version: 3\nname: p\nparticipants:\n\
                       - {name: s, type: server, org: o}\n\
                       - {name: a@b.c, type: admin, org: o, role: lead}\n";
        let project = Project::parse(project, Path::new("p.yml")).expect("it is right");
        let kits = folder.path().join("kits");
        provision(&project, &kits, &folder.path().join("state")).expect("it can be made");
        let kit = Kit::open(kits.join("a@b.c")).expect("it was just made");
        let signer = Signer::from_kit(&kit).expect("its key is its own");
        Federation {
            kit,
            signer,
            folder,
        }
    })
}

/// A member of an archive, padded.
fn member(out: &mut Vec<u8>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_path(path).expect("short enough");
    header.set_size(bytes.len() as u64);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let federation = federation();
    let archive = if kind % 2 == 0 {
        bytes.to_vec()
    } else {
        // The list ends at the first zero byte; what follows it is the rest.
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let (list, rest) = bytes.split_at(end);
        let signature = federation
            .signer
            .sign(Purpose::Bundle, list)
            .expect("the key is good");
        let mut archive = Vec::new();
        member(&mut archive, "bundle.json", list);
        member(&mut archive, "bundle.sig", &signature);
        member(&mut archive, "submitter.pem", federation.signer.chain_pem());
        archive.extend_from_slice(rest.get(1..).unwrap_or_default());
        archive
    };
    let limits = Limits {
        members: 16,
        code: 1 << 16,
        model: 1 << 16,
        taker: if kind % 4 < 2 { Taker::Server } else { Taker::Site },
    };
    let jobs = federation.folder.path().join("jobs");
    let into = jobs.join("job");
    match unpack(archive.as_slice(), &into, &limits, federation.kit.authority()) {
        Ok(bundle) => {
            let again = open(&into, federation.kit.authority()).expect("it was just checked");
            assert_eq!(again, bundle);
            fs::remove_dir_all(&into).expect("it can be removed");
        }
        Err(BundleError::Exists { .. }) => panic!("the last one was left"),
        Err(_) => {}
    }
    if let Ok(mut left) = fs::read_dir(&jobs) {
        assert!(left.next().is_none(), "something was left");
    }
});
