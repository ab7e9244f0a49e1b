//! Owns: the tests of `Watch`, with real files and a clock that is read as the code reads it.
//! Rule: no pause is guessed: what is due at a deadline is asked for at that deadline.
//! Never: more than one folder in the system's temporary one.

use std::slice;

use super::*;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("rgunicorn-watch-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Place(fs::canonicalize(path).unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// As careful editors save.
    fn replace(&self, name: &str, text: &str) -> PathBuf {
        let new = self.write(&format!("{name}.new"), text);
        fs::rename(new, self.0.join(name)).unwrap();
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What is found when everything that is due by then has been done.
fn found(watch: &mut Watch) -> Vec<PathBuf> {
    watch.hear(watch.next_poll);
    let end = watch.burst.map_or(0, Burst::end);
    watch.settled(end)
}

fn both(test: impl Fn(&mut Watch, &str)) {
    test(&mut Watch::new(ReloadEngine::Poll).unwrap(), "poll");
    test(&mut Watch::new(ReloadEngine::Inotify).unwrap(), "inotify");
}

#[test]
fn a_saved_file_is_found_once_and_others_are_not() {
    both(|watch, engine| {
        let place = Place::new(&format!("saved-{engine}"));
        let path = place.write("app.py", "1");
        watch.add(&path);
        assert!(found(watch).is_empty());
        place.write("app.py~", "1");
        place.write(".app.py.swp", "1");
        place.write("other.py", "1");
        assert!(found(watch).is_empty(), "{engine}");
        place.write("app.py", "22");
        assert_eq!(found(watch), slice::from_ref(&path), "{engine}");
        assert!(found(watch).is_empty(), "{engine}");
        place.replace("app.py", "33");
        assert_eq!(found(watch), slice::from_ref(&path), "{engine}");
        fs::remove_file(&path).unwrap();
        assert_eq!(found(watch), slice::from_ref(&path), "{engine}");
        place.write("app.py", "33");
        assert_eq!(found(watch), [path], "{engine}");
    });
}

#[test]
fn nothing_is_found_before_it_is_quiet() {
    let place = Place::new("quiet");
    let path = place.write("app.py", "1");
    let mut watch = Watch::new(ReloadEngine::Inotify).unwrap();
    watch.add(&path);
    assert_eq!(watch.deadline(), None);
    fs::remove_file(&path).unwrap();
    watch.hear(0);
    let end = watch.deadline().unwrap();
    assert!(watch.settled(end - 1).is_empty());
    // As an editor that moves the old file away before it writes the new one, which here is the old one.
    let before = Burst { first: 0, last: 10 * SECOND };
    assert_eq!(before.end(), LONGEST_BURST);
    assert_eq!(watch.settled(end), [path]);
    assert_eq!(watch.deadline(), None);
}

#[test]
fn a_missing_file_and_folder_are_found_when_they_come() {
    both(|watch, engine| {
        let place = Place::new(&format!("missing-{engine}"));
        watch.add(&place.0.join("shop.py"));
        watch.add(&place.0.join("shop"));
        assert!(found(watch).is_empty());
        fs::create_dir(place.0.join("shop")).unwrap();
        assert_eq!(found(watch), [place.0.join("shop")], "{engine}");
        place.write("shop/__init__.py", "");
        assert!(found(watch).is_empty(), "{engine}: of a folder only its being there matters");
        place.write("shop.py", "");
        assert_eq!(found(watch), [place.0.join("shop.py")], "{engine}");
    });
}

#[test]
fn a_folder_that_goes_and_comes_back() {
    both(|watch, engine| {
        let place = Place::new(&format!("folder-{engine}"));
        fs::create_dir(place.0.join("shop")).unwrap();
        let path = place.write("shop/a.py", "1");
        watch.add(&path);
        fs::rename(place.0.join("shop"), place.0.join("away")).unwrap();
        assert_eq!(found(watch), slice::from_ref(&path), "{engine}");
        fs::rename(place.0.join("away"), place.0.join("shop")).unwrap();
        assert_eq!(found(watch), slice::from_ref(&path), "{engine}");
        fs::remove_dir_all(place.0.join("shop")).unwrap();
        assert_eq!(found(watch), [path], "{engine}");
    });
}

#[test]
fn patterns_find_what_comes_and_what_changes() {
    both(|watch, engine| {
        let place = Place::new(&format!("pattern-{engine}"));
        let first = place.write("a.html", "1");
        watch.add_pattern(Pattern::new(&place.0, "**/*.html"));
        assert!(found(watch).is_empty());
        place.write("a.html", "22");
        assert_eq!(found(watch), [first], "{engine}");
        fs::create_dir_all(place.0.join("deep")).unwrap();
        assert!(found(watch).is_empty(), "{engine}");
        let second = place.write("deep/b.html", "1");
        assert_eq!(found(watch), slice::from_ref(&second), "{engine}");
        place.write("deep/b.html", "22");
        assert_eq!(found(watch), [second], "{engine}");
    });
}

#[test]
fn links_are_followed() {
    both(|watch, engine| {
        let place = Place::new(&format!("link-{engine}"));
        fs::create_dir(place.0.join("real")).unwrap();
        place.write("real/a.py", "1");
        std::os::unix::fs::symlink(place.0.join("real/a.py"), place.0.join("a.py")).unwrap();
        watch.add(&place.0.join("a.py"));
        assert!(found(watch).is_empty());
        place.write("real/a.py", "22");
        assert!(!found(watch).is_empty(), "{engine}");
    });
}

#[test]
fn what_changed_after_a_worker_saw_it_is_found() {
    let place = Place::new("journal");
    let path = place.write("app.py", "1");
    let mut watch = Watch::new(ReloadEngine::Auto).unwrap();
    watch.journal().note(&path).unwrap();
    place.write("app.py", "22");
    assert_eq!(found(&mut watch), slice::from_ref(&path));
    watch.journal().note(&path).unwrap();
    assert!(found(&mut watch).is_empty());
}

#[test]
fn what_an_abandoned_generation_depended_on_stays_watched() {
    let place = Place::new("absorb");
    let path = place.write("new.py", "1");
    let mut current = Watch::new(ReloadEngine::Auto).unwrap();
    let next = Watch::new(ReloadEngine::Auto).unwrap();
    next.journal().note(&path).unwrap();
    current.absorb(next);
    assert!(found(&mut current).is_empty());
    place.write("new.py", "22");
    assert_eq!(found(&mut current), [path]);
}
