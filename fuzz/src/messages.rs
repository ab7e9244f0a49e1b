//! What must hold for the messages between processes, whoever sends them: a connection that another worker hands over, a
//! frame of the control socket.

use std::io;
use std::os::fd::AsFd;

use crate::control::{reply, take_request, Request, MOST_OCTETS};
use crate::driver::{pair, resume, App, Pieces, Plan};
use crate::handoff::{Handed, Mailbox};
use crate::oracles::cuts;
use crate::proxy_protocol::Preface;
use crate::sys::socket::send_descriptor;

/// A message in the mailbox is a connection or an error; a connection is served from there on, and is the same connection
/// when it is sent on.
pub fn handoff(data: &[u8]) {
    let Some((policy, trusted, data)) = crate::oracles::policy(data) else {
        return;
    };
    let mailbox = Mailbox::new().expect("a socket pair");
    let (near, far) = pair();
    send_descriptor(mailbox.ends()[1], data, near.as_fd()).expect("there is room");
    drop(near);
    let handed = match mailbox.receive(&mut Vec::new()) {
        Ok(handed) => handed.expect("a message"),
        Err(e) => return assert_eq!(e.kind(), io::ErrorKind::InvalidData),
    };
    let Handed { fd, papers, octets } = handed;
    mailbox.send(fd.as_fd(), papers, &octets).expect("there is room");
    let again = mailbox.receive(&mut Vec::new()).expect("what was read once").expect("a message");
    assert_eq!((again.papers, &again.octets), (papers, &octets));
    let plan = Plan { policy: &policy, trusted, preface: Preface::None, app: App::Echo };
    let mut client = Pieces::new(far, b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", [1, 20].into_iter());
    resume(again, &mut client, &plan);
}

/// The requests of a client of the control socket, and whether it was cut off.
fn requests(data: &[u8], ends: impl Iterator<Item = usize>) -> (Vec<Request>, bool) {
    let (mut input, mut at, mut all) = (Vec::new(), 0, Vec::new());
    for end in ends {
        input.extend_from_slice(&data[at..end]);
        at = end;
        loop {
            match take_request(&mut input) {
                Ok(Some(request)) => all.push(request),
                Ok(None) => break,
                Err(_) => return (all, true),
            }
        }
        assert!(input.len() < MOST_OCTETS, "an endless request is held");
    }
    (all, false)
}

/// Frames are the same requests however they are cut; a command is what it says that it is; an answer is one frame.
pub fn control(data: &[u8]) {
    let once = requests(data, [data.len()].into_iter());
    assert_eq!(once, requests(data, cuts(data)));
    for request in once.0 {
        let answer = match &request.command {
            Ok(command) => {
                let text = serde_json::json!({ "command": command.to_string() }).to_string();
                let frame = [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
                let (read, cut_off) = requests(&frame, [frame.len()].into_iter());
                assert!(!cut_off && read.len() == 1 && read[0].command == request.command, "{read:?}");
                Ok(serde_json::json!({}))
            }
            Err(why) => Err(why.clone()),
        };
        let frame = reply(&request.id, answer);
        let length = u32::from_be_bytes(frame[..4].try_into().expect("four bytes")) as usize;
        assert_eq!(length, frame.len() - 4);
        let read: serde_json::Value = serde_json::from_slice(&frame[4..]).expect("an answer is JSON");
        assert_eq!(read["id"], request.id);
    }
}
