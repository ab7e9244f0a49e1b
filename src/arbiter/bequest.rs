//! Owns: what a server gives to the one that is to take its place: listeners, the mailbox and the channel between the two,
//! by their numbers in variables, which the old one writes and the new one reads.
//! Rule: the variables are gunicorn's, so that either can follow the other; what only ours understand has a version.
//! Never: starts a server, or speaks with one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use super::kin::{Kin, VERSION};
use super::upgrade::Predecessor;
use crate::config::{Address, Config};
use crate::error::Error;
use crate::handoff::Mailbox;
use crate::listener::{self, Listener, Manner};
use crate::sys::{file, process, socket};

/// gunicorn's variables for the new server, and one of ours: the version, the channel between the two, the mailbox.
const PID: &str = "GUNICORN_PID";
const FDS: &str = "GUNICORN_FD";
const KIN: &str = "RGUNICORN_KIN";
pub const VARIABLES: [&str; 3] = [PID, FDS, KIN];

/// What the new server is given.
pub(super) struct Given<'a> {
    pub(super) parent: i32,
    pub(super) listeners: &'a [Arc<Listener>],
    /// How many a service manager has opened.
    pub(super) passed: usize,
    pub(super) kin: BorrowedFd<'a>,
    pub(super) mailbox: [BorrowedFd<'a>; 2],
}

impl Given<'_> {
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().to_string();
        let [receiver, sender] = self.mailbox.map(number);
        let mut variables = vec![
            (PID, self.parent.to_string()),
            (KIN, format!("{VERSION}:{},{receiver},{sender}", number(self.kin))),
        ];
        if self.passed > 0 {
            variables.push(("LISTEN_PID", process::id().to_string()));
            variables.push(("LISTEN_FDS", self.passed.to_string()));
        } else {
            let numbers: Vec<String> = self.listeners.iter().map(|one| number(one.as_fd())).collect();
            variables.push((FDS, numbers.join(",")));
        }
        variables
    }

    pub(super) fn let_inherit(&self) -> io::Result<()> {
        let listeners = self.listeners.iter().map(|listener| listener.as_fd());
        listeners.chain(self.mailbox).chain([self.kin]).try_for_each(file::let_inherit)
    }
}

/// What the server before this one has given us.
pub(super) struct Inheritance {
    pub(super) old: Predecessor,
    sockets: Vec<OwnedFd>,
    pub(super) mailbox: Option<Mailbox>,
}

impl Inheritance {
    /// From the environment; the caller takes the variables out of it.
    ///
    /// Errors: a descriptor that is named there is not open.
    pub(super) fn take(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Inheritance>, Error> {
        let Some(pid) = env(PID).and_then(|pid| pid.trim().parse::<i32>().ok()) else {
            return Ok(None);
        };
        let kin = env(KIN);
        // gunicorn leaves its variables to what an application starts.
        if kin.is_none() && process::parent() != pid {
            log::warn!("{pid} is not the parent of this process, and nothing of it is taken over ({PID})");
            return Ok(None);
        }
        let (kin, mailbox) = kin.and_then(|text| talk(&text)).transpose()?.unzip();
        let sockets = numbers(&env(FDS).unwrap_or_default(), FDS)?;
        let old = Predecessor::new(pid, kin.map(Kin::new));
        Ok(Some(Inheritance { old, sockets, mailbox }))
    }

    /// The listeners among the sockets that the configuration asks for; the others are closed.
    pub(super) fn listeners(
        &mut self,
        config: &Config,
        manner: &Manner,
    ) -> Result<Vec<Arc<Listener>>, Error> {
        let mut wanted: Vec<_> = config.bind.iter().collect();
        let mut listeners = Vec::new();
        for socket in self.sockets.drain(..) {
            let number = socket.as_raw_fd();
            let failed = |e: io::Error| Error::system(&format!("descriptor {number}"), &e, FDS);
            let local = listener::locate(socket.as_fd()).map_err(failed)?;
            let asked =
                |address: &&Address| **address == Address::Fd(number) || listener::serves(&local, address);
            match wanted.iter().position(asked) {
                Some(at) => {
                    let address = wanted.remove(at);
                    listeners.push(Arc::new(Listener::adopt(socket, address, manner).map_err(failed)?));
                }
                None => log::warn!("{local} is not served any more (--bind)"),
            }
        }
        Ok(listeners)
    }
}

type Talk = (OwnedFd, Mailbox);

/// The channel and the mailbox, if they are of our version.
fn talk(text: &str) -> Option<Result<Talk, Error>> {
    let (version, numbers) = text.split_once(':')?;
    if version != VERSION.to_string() {
        log::info!("The old server speaks another language; its idle connections end with it");
        return None;
    }
    let taken = self::numbers(numbers, KIN);
    let three = taken.map(<[OwnedFd; 3]>::try_from);
    Some(match three {
        Ok(Ok([kin, receiver, sender])) => Ok((kin, Mailbox::inherited(receiver, sender))),
        Ok(Err(_)) => Err(Error::Other(format!("three descriptors are wanted ({KIN})"))),
        Err(e) => Err(e),
    })
}

/// Takes descriptors over by their numbers.
fn numbers(text: &str, variable: &str) -> Result<Vec<OwnedFd>, Error> {
    let taken = |word: &str| {
        let number = word.trim().parse::<RawFd>().ok().filter(|number| *number > 2);
        let number = number.ok_or_else(|| Error::Other(format!("'{word}' is no descriptor ({variable})")))?;
        socket::inherited(number).map_err(|e| Error::system(&format!("descriptor {number}"), &e, variable))
    };
    text.split(',').filter(|word| !word.is_empty()).map(taken).collect()
}
