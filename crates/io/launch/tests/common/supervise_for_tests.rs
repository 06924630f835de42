//! `firesteel supervise` without the rest of `firesteel`.

fn main() {
    if let Err(error) = firesteel_launch::supervise() {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
