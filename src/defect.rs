//! Owns: the places at which a test can make a process panic, as no input is known that does.
//! Rule: they are in builds with debug assertions only; a release has nothing of them, not even the variable's name.
//! Never: anything but a panic.

/// Panics if the test has put a file by the name of this place into the folder that the environment names. Whoever takes
/// the file away is the one, so that one file is one panic, in one process.
#[cfg(debug_assertions)]
#[track_caller]
pub fn planted(place: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| std::env::var_os("RGUNICORN_DEFECTS").map(PathBuf::from));
    if folder.as_ref().is_some_and(|folder| std::fs::remove_file(folder.join(place)).is_ok()) {
        panic!("planted at {place}");
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn planted(_: &str) {}
