//! Owns: which files the code of one generation depends on, and whether one of them has become another.
//! Rule: what decides is a file's signature, not what the kernel tells: being told of a name only means to look at it, when
//! there has been quiet for a moment. Names that nothing depends on are never looked at, so what an editor leaves beside
//! them does not matter.
//! Never: waits, starts a thread, reads a file; decides what follows a change.

pub mod journal;
pub mod pattern;
mod signature;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::journal::{Journal, Reader};
use self::pattern::Pattern;
use self::signature::Signature;
use crate::config::ReloadEngine;
use crate::sys::clock::{self, Nanos, SECOND};
use crate::sys::inotify::{blind_file_system, FolderId, Inotify, Told};

/// Saves come in bursts: an editor's, a checkout's. So long nothing may have happened before files are looked at.
const QUIET: Nanos = SECOND / 20;
/// A burst that does not end is looked at all the same.
const LONGEST_BURST: Nanos = SECOND;
/// How often polled files are looked at, unless that takes long.
const POLL: Nanos = SECOND / 4;
/// No more than this part of the time goes into polling.
const POLL_SHARE: Nanos = 50;

pub struct Watch {
    journal: Arc<Journal>,
    reader: Reader,
    engine: ReloadEngine,
    /// None: every folder is polled.
    inotify: Option<Inotify>,
    folders: HashMap<PathBuf, Folder>,
    /// Several paths may lead to one folder.
    told: HashMap<FolderId, Vec<PathBuf>>,
    patterns: Vec<Pattern>,
    /// What is to be looked at once it is quiet.
    suspects: BTreeSet<PathBuf>,
    /// A file may have come that a pattern matches.
    appeared: bool,
    /// What has changed, known without being looked at again.
    changed: BTreeSet<PathBuf>,
    burst: Option<Burst>,
    next_poll: Nanos,
    remark: Option<String>,
}

#[derive(Default)]
struct Folder {
    /// None: polled.
    id: Option<FolderId>,
    names: HashMap<OsString, Signature>,
    /// A pattern may match what appears here.
    is_open: bool,
}

#[derive(Clone, Copy)]
struct Burst {
    first: Nanos,
    last: Nanos,
}

impl Burst {
    fn end(self) -> Nanos {
        (self.last + QUIET).min(self.first + LONGEST_BURST)
    }
}

impl Watch {
    /// Errors: there is no memory for the journal.
    pub fn new(engine: ReloadEngine) -> io::Result<Watch> {
        let mut watch = Watch {
            journal: Arc::new(Journal::new()?),
            reader: Reader::default(),
            engine,
            inotify: None,
            folders: HashMap::new(),
            told: HashMap::new(),
            patterns: Vec::new(),
            suspects: BTreeSet::new(),
            appeared: false,
            changed: BTreeSet::new(),
            burst: None,
            next_poll: 0,
            remark: None,
        };
        if engine != ReloadEngine::Poll {
            match Inotify::new() {
                Ok(inotify) => watch.inotify = Some(inotify),
                Err(e) => watch.say(format!("inotify cannot be used, files are polled: {e}")),
            }
        }
        Ok(watch)
    }

    /// Where workers note what they import.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Watches a file, whether or not it is there.
    pub fn add(&mut self, path: &Path) {
        self.depend(path, Signature::of(path));
    }

    /// Watches the files that match, now or later.
    pub fn add_pattern(&mut self, mut pattern: Pattern) {
        for file in pattern.expand() {
            self.add(&file);
        }
        self.open_folders(&pattern);
        self.patterns.push(pattern);
    }

    /// Takes over what another generation depended on, and what it has noticed.
    pub fn absorb(&mut self, mut other: Watch) {
        other.read_journal();
        for (folder, found) in other.folders {
            for (name, signature) in found.names {
                self.depend(&folder.join(name), signature);
            }
        }
        other.changed.into_iter().for_each(|path| self.has_changed(path));
        other.suspects.into_iter().for_each(|path| self.suspect(path));
    }

    /// What the operator should know, once.
    pub fn remark(&mut self) -> Option<String> {
        self.remark.take()
    }

    /// Takes in what workers and the kernel have told, and looks at polled files when it is time to.
    pub fn hear(&mut self, now: Nanos) {
        self.read_journal();
        self.read_events();
        if self.is_polling() && now >= self.next_poll {
            self.poll();
            let after = clock::monotonic();
            self.next_poll = after + POLL.max(after.saturating_sub(now) * POLL_SHARE);
        }
    }

    /// The files that have changed, once there is quiet.
    pub fn settled(&mut self, now: Nanos) -> Vec<PathBuf> {
        if self.burst.is_none_or(|burst| burst.end() > now) {
            return Vec::new();
        }
        self.burst = None;
        let mut changed = std::mem::take(&mut self.changed);
        if std::mem::take(&mut self.appeared) {
            changed.extend(self.expand());
        }
        let suspects = std::mem::take(&mut self.suspects);
        changed.extend(suspects.into_iter().filter(|path| self.take_over(path)));
        changed.into_iter().collect()
    }

    /// When there may be something to do that no descriptor tells of.
    pub fn deadline(&self) -> Option<Nanos> {
        let poll = self.is_polling().then_some(self.next_poll);
        poll.into_iter().chain(self.burst.map(Burst::end)).min()
    }

    /// Readable when the kernel has something to tell.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    // ---- what is watched

    /// Of a file that was `seen` so by somebody who depends on it.
    fn depend(&mut self, path: &Path, seen: Signature) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let is_new = !self.folder(folder).names.contains_key(name);
        if is_new {
            self.folder(folder).names.insert(name.to_os_string(), seen);
            self.follow_link(path);
        } else if self.folder(folder).names.get(name) == Some(&seen) {
            return;
        }
        // It may have changed between being seen and being watched.
        let found = Signature::of(path);
        if found != seen {
            self.folder(folder).names.insert(name.to_os_string(), found);
            self.has_changed(path.to_path_buf());
        }
    }

    /// What happens to the file that a link leads to is told of where that file is.
    fn follow_link(&mut self, path: &Path) {
        let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        if let (true, Ok(target)) = (is_link, fs::canonicalize(path)) {
            self.add(&target);
        }
    }

    fn folder(&mut self, path: &Path) -> &mut Folder {
        if !self.folders.contains_key(path) {
            let id = self.watch_folder(path);
            self.folders.insert(path.to_path_buf(), Folder { id, ..Folder::default() });
        }
        self.folders.entry(path.to_path_buf()).or_default()
    }

    fn watch_folder(&mut self, path: &Path) -> Option<FolderId> {
        self.inotify.as_ref()?;
        if let (ReloadEngine::Auto, Some(name)) = (self.engine, blind_file_system(path)) {
            let shown = path.display();
            self.say(format!("{shown} is on {name}, where not all changes are told; its files are polled"));
            return None;
        }
        match self.inotify.as_ref()?.watch(path) {
            Ok(id) => {
                self.told.entry(id).or_default().push(path.to_path_buf());
                Some(id)
            }
            Err(e) => {
                if e.raw_os_error() == Some(libc::ENOSPC) {
                    self.say("no inotify watch is left, the other files are polled (sysctl fs.inotify.max_user_watches)".into());
                }
                None
            }
        }
    }

    fn open_folders(&mut self, pattern: &Pattern) {
        for folder in &pattern.folders {
            self.folder(folder).is_open = true;
        }
    }

    /// The first remark is the one that explains the others.
    fn say(&mut self, remark: String) {
        self.remark.get_or_insert(remark);
    }

    // ---- what is told

    fn read_journal(&mut self) {
        match self.reader.read(&self.journal) {
            Ok(entries) => entries.iter().for_each(|(path, seen)| self.depend(path, *seen)),
            Err(e) => self.say(format!("cannot read which files the workers use: {e}")),
        }
    }

    fn read_events(&mut self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        match inotify.pending() {
            Ok(told) => told.into_iter().for_each(|told| self.is_told(told)),
            Err(e) => {
                self.say(format!("inotify has failed, files are polled: {e}"));
                self.inotify = None;
                self.folders.values_mut().for_each(|folder| folder.id = None);
            }
        }
    }

    fn is_told(&mut self, told: Told) {
        match told {
            Told::Name(id, name) => {
                for folder in self.told.get(&id).cloned().unwrap_or_default() {
                    self.name_is_told(&folder, &name);
                }
            }
            Told::Folder(id) => {
                for folder in self.told.remove(&id).unwrap_or_default() {
                    self.folder_is_gone(&folder);
                }
            }
            Told::Overflow => {
                self.appeared = true;
                let all: Vec<_> = self.folders.iter().flat_map(|(path, folder)| folder.paths(path)).collect();
                all.into_iter().for_each(|path| self.suspect(path));
            }
        }
    }

    fn name_is_told(&mut self, folder: &Path, name: &OsString) {
        let Some(known) = self.folders.get(folder) else {
            return;
        };
        let path = folder.join(name);
        if known.names.contains_key(name) {
            self.suspect(path);
        } else if known.is_open && !pattern::is_noise(&path) {
            self.appeared = true;
            self.stir();
        }
    }

    /// From now on it is polled: it may come back.
    fn folder_is_gone(&mut self, path: &Path) {
        let Some(folder) = self.folders.get_mut(path) else {
            return;
        };
        folder.id = None;
        let names = folder.paths(path);
        names.into_iter().for_each(|path| self.suspect(path));
    }

    // ---- polling

    fn is_polling(&self) -> bool {
        self.inotify.is_none() || self.folders.values().any(|folder| folder.id.is_none())
    }

    fn poll(&mut self) {
        let polled = || self.folders.iter().filter(|(_, folder)| folder.id.is_none());
        let is_open = polled().any(|(_, folder)| folder.is_open);
        let suspects: Vec<_> = polled().flat_map(|(path, folder)| folder.differing(path)).collect();
        suspects.into_iter().for_each(|path| self.suspect(path));
        if is_open {
            let new = self.expand();
            new.into_iter().for_each(|path| self.has_changed(path));
        }
    }

    // ---- what follows

    fn suspect(&mut self, path: PathBuf) {
        self.suspects.insert(path);
        self.stir();
    }

    fn has_changed(&mut self, path: PathBuf) {
        self.changed.insert(path);
        self.stir();
    }

    fn stir(&mut self) {
        let now = clock::monotonic();
        let first = self.burst.map_or(now, |burst| burst.first);
        self.burst = Some(Burst { first, last: now });
    }

    /// Expands the patterns again; gives the files that have come.
    fn expand(&mut self) -> Vec<PathBuf> {
        let mut patterns = std::mem::take(&mut self.patterns);
        let mut came = HashSet::new();
        for pattern in &mut patterns {
            came.extend(pattern.expand());
            self.open_folders(pattern);
        }
        self.patterns = patterns;
        came.iter().for_each(|path| self.add(path));
        came.into_iter().collect()
    }

    /// Whether the file is another than the one known, which it is from now on.
    fn take_over(&mut self, path: &Path) -> bool {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        let found = Signature::of(path);
        let Some(known) = self.folders.get_mut(folder).and_then(|folder| folder.names.get_mut(name)) else {
            return false;
        };
        std::mem::replace(known, found) != found
    }
}

impl Folder {
    fn paths(&self, folder: &Path) -> Vec<PathBuf> {
        self.names.keys().map(|name| folder.join(name)).collect()
    }

    fn differing(&self, folder: &Path) -> Vec<PathBuf> {
        let differs = |(name, known): (&OsString, &Signature)| {
            let path = folder.join(name);
            (Signature::of(&path) != *known).then_some(path)
        };
        self.names.iter().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests;
