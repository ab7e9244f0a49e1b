//! Owns: the channel beside the pid file on which `rgunicorn reload --wait` asks for a reload and hears how it ended.
//! Rule: a socket's file that only our own user and root may open. Whoever asks is answered once, with the end of a reload
//! that began after it had asked; one that overtakes that reload takes its askers along.
//! Never: reloads, blocks, trusts what it reads.
//!
//! Messages (SOCK_SEQPACKET): `ASK` from the asker; the answer begins with `DONE` or `FAILED` and a space.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::sys::socket::{recv, send, MsgFlags};

use crate::sys::{file, process, socket};

pub const ASK: &[u8] = b"reload";
pub const DONE: &str = "done";
pub const FAILED: &str = "failed";
/// The longest answer.
pub const ANSWER: usize = 16 * 1024;
/// More at a time are not heard.
const MOST: usize = 16;

/// Where the channel of the server with this pid file is.
pub fn beside(pidfile: &Path) -> PathBuf {
    let mut name = pidfile.as_os_str().to_owned();
    name.push(".reload");
    name.into()
}

pub struct Askers {
    listener: OwnedFd,
    path: PathBuf,
    inode: u64,
    /// Connected, and whether it has asked.
    list: Vec<(OwnedFd, bool)>,
}

impl Askers {
    /// The caller has the pid file's lock, so what is found there is of no living server.
    ///
    /// Errors: the file cannot be made.
    pub fn listen(pidfile: &Path) -> io::Result<Askers> {
        let path = beside(pidfile);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path)?,
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => {}
        }
        let before = process::set_umask(0o177);
        let listener = socket::listen_for_messages(&path);
        process::set_umask(before);
        let listener = listener?;
        let inode = file::identity(&path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Askers { listener, path, inode, list: Vec::new() })
    }

    /// Hears who has come and what they ask; true when somebody asks for a reload.
    pub fn hear(&mut self) -> bool {
        while self.list.len() < MOST {
            match socket::accept(self.listener.as_fd()) {
                Ok((asker, _)) => self.list.push((asker, false)),
                Err(_) => break,
            }
        }
        let mut asked = false;
        self.list.retain_mut(|(asker, waits)| {
            let mut bytes = [0; 16];
            match recv(asker.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from) {
                Ok(length) if &bytes[..length] == ASK => {
                    asked = true;
                    *waits = true;
                    true
                }
                Err(e) => matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
                // It is gone, or speaks of something else.
                Ok(_) => false,
            }
        });
        asked
    }

    /// Tells all who have asked how the reload ended.
    pub fn answer(&mut self, how: &str, more: &str) {
        let mut text = format!("{how} {more}");
        text.truncate((0..=ANSWER).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
        self.list.retain(|(asker, waits)| {
            if *waits {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                // Whoever is gone meanwhile does not want to know.
                let _ = send(asker.as_raw_fd(), text.as_bytes(), flags);
            }
            !waits
        });
    }

    /// Readable when somebody comes or says something.
    pub fn waits(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let room = self.list.len() < MOST;
        let listener = room.then(|| self.listener.as_fd());
        listener.into_iter().chain(self.list.iter().map(|(asker, _)| asker.as_fd()))
    }

    /// The pid file has another name now.
    pub fn follow(&mut self, pidfile: &Path) -> io::Result<()> {
        let path = beside(pidfile);
        if path != self.path {
            fs::rename(&self.path, &path)?;
            self.path = path;
        }
        Ok(())
    }

    pub fn remove(&self) {
        if file::identity(&self.path) == Some(self.inode) {
            if let Err(e) = fs::remove_file(&self.path) {
                log::warn!("Cannot remove {}: {e}", self.path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn ask(path: &Path, words: &[u8]) -> OwnedFd {
        let (asker, server) = socket::connect_for_messages(&beside(path)).unwrap();
        assert_eq!(server, process::id());
        send(asker.as_raw_fd(), words, MsgFlags::empty()).unwrap();
        asker
    }

    fn heard(asker: &OwnedFd) -> Option<String> {
        let mut bytes = [0; 64];
        let length = recv(asker.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    #[test]
    fn who_asks_is_answered_once_and_nobody_else() {
        let folder = std::env::temp_dir().join(format!("rgunicorn-{}-{}", "a".repeat(120), process::id()));
        fs::create_dir(&folder).unwrap();
        let pidfile = folder.join("pid");
        // Left by one that was killed.
        drop(Askers::listen(&pidfile).unwrap());
        let mut askers = Askers::listen(&pidfile).unwrap();
        assert_eq!(fs::metadata(beside(&pidfile)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!askers.hear());
        let (first, odd) = (ask(&pidfile, ASK), ask(&pidfile, b"stop"));
        assert!(askers.hear());
        assert_eq!(heard(&odd).as_deref(), Some(""), "an end");
        askers.answer(DONE, "all");
        assert_eq!(heard(&first).as_deref(), Some("done all"));
        assert_eq!(heard(&first).as_deref(), Some(""));
        let gone = ask(&pidfile, ASK);
        assert!(askers.hear());
        drop(gone);
        askers.answer(FAILED, &"ä".repeat(ANSWER));
        askers.follow(&folder.join("other")).unwrap();
        assert!(!beside(&pidfile).exists() && beside(&folder.join("other")).exists());
        askers.remove();
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        let pidfile = std::env::temp_dir().join(format!("rgunicorn-askers-{}", process::id()));
        let target = pidfile.with_extension("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, beside(&pidfile)).unwrap();
        assert!(Askers::listen(&pidfile).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        fs::remove_file(beside(&pidfile)).unwrap();
        fs::remove_file(&target).unwrap();
    }
}
