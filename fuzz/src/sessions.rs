//! What must hold for TLS: bytes that are none of a session's never become a request, and what a client says in a session
//! arrives as it was said, however it is cut.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::config::{ClientCertificate, Tls};
use crate::connections::{check, plain};
use crate::driver::{drain, pair, responses, serve, App, Client, Pieces, Plan, Seen};
use crate::oracles::{cuts, policy};
use crate::proxy_protocol::Preface;
use crate::tls::tickets::TicketKeys;
use crate::tls::Context;
use crate::transport::Transport;
use crate::FUZZ;

/// Of a handshake that fails, or of a session of which nothing is understood.
const MOST_SAID: usize = 8 * 1024;

/// The two ends' choices, made once; the certificate in `tls/` is good for these tests and nothing else.
struct Ends {
    server: Context,
    clients: [Arc<ClientConfig>; 2],
}

fn ends() -> &'static Ends {
    static ENDS: OnceLock<Ends> = OnceLock::new();
    ENDS.get_or_init(|| {
        let folder = Path::new(FUZZ).join("tls");
        let certfile = folder.join("cert.pem");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certfile).expect("a certificate")).expect("a root");
        let tls = Tls {
            certfile,
            keyfile: Some(folder.join("key.pem")),
            authorities: None,
            client: ClientCertificate::Ignored,
            ciphers: None,
            tls12: true,
            tls13: true,
        };
        let client = |versions| {
            let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let builder = builder.with_protocol_versions(versions).expect("a version");
            Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth())
        };
        let clients = [client(&[&TLS13]), client(&[&TLS12])];
        let keys = Arc::new(TicketKeys::new().expect("keys"));
        Ends { server: Context::load(&tls, &keys).expect("the files of a server"), clients }
    })
}

/// A client that speaks TLS, whose bytes are cut and maybe changed on their way.
struct Speaker<'a, I> {
    far: UnixStream,
    session: ClientConnection,
    data: &'a [u8],
    cuts: I,
    at: usize,
    /// What is to be sent, and how much of all of it has been.
    wire: Vec<u8>,
    sent: usize,
    last: usize,
    /// Which byte on the wire is changed.
    changed: Option<(usize, u8)>,
    closing: bool,
    broken: bool,
    ended: bool,
    answers: Vec<u8>,
}

impl<I: Iterator<Item = usize>> Speaker<'_, I> {
    fn hear(&mut self) {
        let mut heard = Vec::new();
        drain(&mut self.far, &mut heard);
        let mut rest = &heard[..];
        while !rest.is_empty() && !self.broken {
            match self.session.read_tls(&mut rest) {
                Ok(1..) => self.broken = self.session.process_new_packets().is_err(),
                _ => self.broken = true,
            }
            // Until the end of what has been decrypted.
            let _ = self.session.reader().read_to_end(&mut self.answers);
        }
    }

    fn speak(&mut self) {
        if !self.session.is_handshaking() && !self.broken {
            let end = self.cuts.next().unwrap_or(self.data.len());
            self.session.writer().write_all(&self.data[self.at..end]).expect("memory");
            self.at = end;
            if self.at == self.data.len() && !std::mem::replace(&mut self.closing, true) {
                self.session.send_close_notify();
            }
        }
        while self.session.wants_write() {
            self.session.write_tls(&mut self.wire).expect("memory");
        }
    }
}

impl<I: Iterator<Item = usize>> Client for Speaker<'_, I> {
    fn feed(&mut self) -> bool {
        self.hear();
        self.speak();
        // One piece of what there is; a whole record now and then.
        let most = 1 + (self.sent * 7 + self.at * 13) % 600;
        let mut piece: Vec<u8> = self.wire.drain(..self.wire.len().min(most)).collect();
        self.last = piece.len();
        if let Some((place, bits)) = self.changed.filter(|(place, _)| *place >= self.sent) {
            if let Some(byte) = piece.get_mut(place - self.sent) {
                *byte ^= bits;
            }
        }
        self.sent += piece.len();
        if !piece.is_empty() {
            // A server that has closed is no error of the client's.
            let _ = self.far.write_all(&piece);
            return true;
        }
        let _ = self.far.shutdown(Shutdown::Write);
        !std::mem::replace(&mut self.ended, true)
    }

    fn collect(&mut self) {
        self.hear();
    }

    fn last(&self) -> usize {
        self.last
    }
}

fn transport(fd: std::os::fd::OwnedFd) -> Transport {
    Transport::secure(fd, ends().server.session().expect("a session"))
}

/// Bytes of somebody who knows nothing of a session.
fn strange(data: &[u8], ends: impl Iterator<Item = usize>, plan: &Plan<'_>) -> (usize, Option<Vec<u8>>) {
    let (near, far) = pair();
    let mut client = Pieces::new(far, data, ends);
    let seen = serve(transport(near), &mut client, plan);
    assert!(seen.is_empty(), "a request without a session: {seen:?}");
    assert!(client.answers.len() <= MOST_SAID, "{} bytes to a stranger", client.answers.len());
    let refusal = client.answers.starts_with(b"HTTP/");
    assert!(!refusal || data[0].is_ascii_alphabetic(), "plain text in a session");
    let refused = refusal.then(|| responses(&client.answers, &seen));
    (client.answers.len(), refused.map(|list| list[0].body.clone()))
}

/// All that a client says in a session, maybe with a byte changed on the way.
fn spoken(
    data: &[u8],
    version: usize,
    changed: Option<(usize, u8)>,
    plan: &Plan<'_>,
) -> (Vec<Seen>, Vec<u8>) {
    let (near, far) = pair();
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(ends().clients[version].clone(), name).expect("a client");
    let mut client = Speaker {
        far,
        session,
        data,
        cuts: cuts(data),
        at: 0,
        wire: Vec::new(),
        sent: 0,
        last: 0,
        changed,
        closing: false,
        broken: false,
        ended: false,
        answers: Vec::new(),
    };
    let seen = serve(transport(near), &mut client, plan);
    (seen, client.answers)
}

/// A session: what a stranger sends is no request; what a client sends in it is what it would be without TLS; of what was
/// changed on the way nothing gets through.
pub fn tls(data: &[u8]) {
    let Some((policy, trusted, [kind, place, bits, data @ ..])) = policy(data) else {
        return;
    };
    let plan = Plan { policy: &policy, trusted, preface: Preface::None, app: App::Echo };
    if kind & 1 == 0 {
        let once = strange(data, [data.len()].into_iter(), &plan);
        let cut = strange(data, cuts(data), &plan);
        return assert_eq!(once.1, cut.1, "refused otherwise when cut otherwise");
    }
    let changed = (*bits != 0).then(|| (usize::from(*place) * 4 + usize::from(kind >> 2 & 3), *bits));
    let (seen, answers) = spoken(data, usize::from(kind >> 1 & 1), changed, &plan);
    let expected = plain(data, [data.len()].into_iter(), &plan);
    if changed.is_none() {
        let answers = responses(&answers, &seen);
        check(&seen, &answers, plan.app);
        let most = answers.len().min(expected.1.len());
        assert_eq!((&seen, &answers[..most]), (&expected.0, &expected.1[..most]));
        return;
    }
    assert!(seen.len() <= expected.0.len(), "{seen:?}");
    for (request, meant) in seen.iter().zip(&expected.0) {
        assert_eq!(request.head, meant.head);
        assert!(meant.body.starts_with(&request.body) && (request.fault.is_some() || *request == *meant));
    }
}
