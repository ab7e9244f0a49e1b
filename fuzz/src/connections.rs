//! What must hold for a connection from its first byte to its close, whatever comes and however it is cut.

use crate::driver::{pair, responses, serve, App, Pieces, Plan, Response, Seen};
use crate::oracles::{cuts, policy};
use crate::proxy_protocol::{header, Header, Mode, Preface};
use crate::transport::Transport;

/// Inputs up to so long are tried a byte at a time too.
const SHORT: usize = 300;

/// Both sides' view of a connection: what the application saw, what the client was told.
pub type Both = (Vec<Seen>, Vec<Response>);

pub fn plain(data: &[u8], ends: impl Iterator<Item = usize>, plan: &Plan<'_>) -> Both {
    let (near, far) = pair();
    let mut client = Pieces::new(far, data, ends);
    let seen = serve(Transport::Plain(near), &mut client, plan);
    let answers = responses(&client.answers, &seen);
    check(&seen, &answers, plan.app);
    (seen, answers)
}

/// Each request has its answer, in order; behind them there is at most a refusal.
pub fn check(seen: &[Seen], answers: &[Response], app: App) {
    assert!(answers.len() == seen.len() || answers.len() == seen.len() + 1, "{seen:?} {answers:?}");
    for (request, answer) in seen.iter().zip(answers) {
        assert_eq!(answer.status, if request.fault.is_some() { 400 } else { 200 });
        if request.fault.is_none() && !request.is_head && app != App::Deaf {
            assert_eq!(answer.body, request.body);
        }
    }
    if let Some(refusal) = answers.get(seen.len()) {
        assert!(refusal.status >= 400 && refusal.last, "{refusal:?}");
    }
}

/// The same came of it. A refusal may come with a later byte, which has not been sent.
fn assert_same(one: &Both, other: &Both) {
    assert_eq!(one.0, other.0, "other requests when cut otherwise");
    let most = one.1.len().min(other.1.len());
    assert_eq!(one.1[..most], other.1[..most], "other answers when cut otherwise");
}

fn app(bits: u8) -> App {
    [App::Echo, App::Blocks, App::Deaf][usize::from(bits) % 3]
}

fn tried(data: &[u8], plan: &Plan<'_>) -> Both {
    let once = plain(data, [data.len()].into_iter(), plan);
    let pieces = plain(data, cuts(data), plan);
    // Whether a body that nobody reads has come already depends on when it came, and with it whether the connection goes on.
    if plan.app != App::Deaf {
        assert_same(&once, &pieces);
        if data.len() <= SHORT {
            assert_same(&once, &plain(data, 1..=data.len(), plan));
        }
    }
    once
}

/// A connection: the same requests and answers however its bytes are cut, responses and nothing else, a bounded head.
pub fn conn(data: &[u8]) {
    let Some((policy, trusted, [bits, data @ ..])) = policy(data) else {
        return;
    };
    let preface = if bits & 4 == 0 { Preface::None } else { Preface::Barred };
    tried(data, &Plan { policy: &policy, trusted, preface, app: app(bits & 3) });
}

/// A PROXY header and what follows it: the requests are those that would come without it, for the client that it names.
pub fn proxied(data: &[u8]) {
    let Some((policy, trusted, [bits, data @ ..])) = policy(data) else {
        return;
    };
    let mode = [Mode::V1, Mode::V2, Mode::Auto][usize::from(bits >> 2) % 3];
    let mut plan = Plan { policy: &policy, trusted, preface: Preface::Due(mode), app: app(bits & 3) };
    let (seen, answers) = tried(data, &plan);
    match header(data, mode) {
        Err(_) => assert!(seen.is_empty() && answers.len() == 1, "{seen:?} {answers:?}"),
        Ok(Header::Partial) => assert!(seen.is_empty() && answers.is_empty(), "{seen:?} {answers:?}"),
        Ok(Header::Complete { length, origin }) => {
            let rest = &data[length..];
            plan.preface = Preface::None;
            let mut expected = plain(rest, [rest.len()].into_iter(), &plan);
            for request in &mut expected.0 {
                request.client = origin.map(|origin| origin.client.to_string());
            }
            assert_eq!((seen, answers), expected);
        }
    }
}
