//! Owns: the places at which a test can make a process panic, as no input is known that does, or do at once what it does
//! every few hours.
//! Rule: they are in builds with debug assertions only; a release has nothing of them, not even the variable's name.
//! Never: decides anything in a release.

/// Panics if the test has put a file by the name of this place into the folder that the environment names. Whoever takes
/// the file away is the one, so that one file is one panic, in one process.
#[cfg(debug_assertions)]
#[track_caller]
pub fn planted(place: &str) {
    if asked(place) {
        panic!("planted at {place}");
    }
}

/// Whether the test asks that what is done at this place be done now; once a file.
#[cfg(debug_assertions)]
pub fn asked(place: &str) -> bool {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| std::env::var_os("RGUNICORN_DEFECTS").map(PathBuf::from));
    folder.as_ref().is_some_and(|folder| std::fs::remove_file(folder.join(place)).is_ok())
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn asked(_: &str) -> bool {
    false
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn planted(_: &str) {}
