//! Owns: what two servers say to each other while one is to replace the other (USR2): a word when something changes.
//! Rule: both ends are equal. A word is a whole state, never a step, so that the last one is all that counts; a peer that
//! is gone serves nothing.
//! Never: decides what follows from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{recv, send, MsgFlags};

/// Of these words and of the messages in the mailbox, which both servers use. Another version is not spoken to.
pub const VERSION: u32 = 2;

/// In one turn.
const MOST_WORDS: usize = 64;

/// What a server says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// How many of its workers serve and have not been told to go: connections can be left to them.
    pub serving: usize,
    /// It has been told to stop.
    pub leaving: bool,
}

pub struct Kin {
    socket: OwnedFd,
    /// The last that was heard.
    pub peer: Word,
    told: Option<Word>,
    ended: bool,
}

impl Kin {
    pub fn new(socket: OwnedFd) -> Kin {
        Kin { socket, peer: Word::default(), told: None, ended: false }
    }

    /// Says it, unless it has been said.
    pub fn tell(&mut self, word: Word) {
        if self.ended || self.told == Some(word) {
            return;
        }
        let text = format!("{} {}", word.serving, u8::from(word.leaving));
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        // What does not fit is said at the next occasion; an end is heard by `hear`.
        if send(self.socket.as_raw_fd(), text.as_bytes(), flags).is_ok() {
            self.told = Some(word);
        }
    }

    /// Takes in what has been said.
    pub fn hear(&mut self) {
        let mut bytes = [0; 64];
        // What is left is heard in the next turn.
        for _ in 0..MOST_WORDS {
            if self.ended {
                return;
            }
            let received = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            match received.map_err(io::Error::from) {
                Ok(length @ 1..) => self.peer = read(&bytes[..length]).unwrap_or(self.peer),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    self.ended = true;
                    self.peer.serving = 0;
                }
            }
        }
    }

    /// The peer is gone.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Readable when something has been said; None when nothing will be any more.
    pub fn waits(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.socket.as_fd())
    }
}

fn read(text: &[u8]) -> Option<Word> {
    let mut numbers = std::str::from_utf8(text).ok()?.split(' ').map(|word| word.parse::<usize>().ok());
    Some(Word { serving: numbers.next()??, leaving: numbers.next()?? == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    #[test]
    fn the_last_word_counts_and_the_end_is_silence() {
        let (ours, theirs) = process::message_pair().unwrap();
        let (mut ours, mut theirs) = (Kin::new(ours), Kin::new(theirs));
        theirs.hear();
        assert_eq!(theirs.peer, Word::default());
        for word in [Word { serving: 1, leaving: false }, Word { serving: 12, leaving: true }] {
            ours.tell(word);
            ours.tell(word);
        }
        theirs.hear();
        assert_eq!(theirs.peer, Word { serving: 12, leaving: true });
        assert!(theirs.waits().is_some());
        drop(ours);
        theirs.hear();
        assert!(theirs.has_ended() && theirs.waits().is_none());
        assert_eq!(theirs.peer, Word { serving: 0, leaving: true });
        theirs.tell(Word::default());
    }
}
