//! A request head comes to the same whatever the segmentation, by the short way too; it is bounded; nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rules::http::body::Decoder;
use rules::http::parse::{self, Status};
use rules::http::{Head, Policy, Reject};

/// The refusal, the head with its octets as they were read, or nothing yet.
type Outcome = Result<Option<(Vec<u8>, String)>, Reject>;

fn try_head(held: &mut [u8], policy: &Policy, trusted: bool, head: &mut Head) -> Result<Option<usize>, Reject> {
    let judged = if policy.leniency.is_none() { held.len() } else { policy.leniency.rewrite(held) };
    assert!(judged <= held.len() && held.len() - judged <= 72, "so much waits for more");
    Ok(match parse::head(&held[..judged], policy, trusted, head)? {
        Status::Complete => Some(head.length),
        Status::Partial => None,
    })
}

/// As a connection does it. With `gate` it does not try at every octet.
fn grown(data: &[u8], ends: impl Iterator<Item = usize>, policy: &Policy, trusted: bool, gate: bool) -> Outcome {
    let (mut held, mut head, mut seen) = (Vec::new(), Head::default(), 0);
    for end in ends {
        held.extend_from_slice(&data[held.len()..end]);
        if gate && !parse::worth_parsing(&held, seen) {
            continue;
        }
        if let Some(length) = try_head(&mut held, policy, trusted, &mut head)? {
            assert!(length <= end && head.fields_at <= length && length <= policy.limits.head);
            assert!(head.fields.list.len() <= policy.limits.fields);
            held.truncate(length);
            return Ok(Some((held, format!("{head:?}"))));
        }
        assert!(held.len() <= policy.limits.head + 72, "an endless head is held");
        seen = held.len();
    }
    Ok(None)
}

/// A second request with the same fields, read by its start line alone, is what it would be if read in full.
fn repeated(whole: &[u8], policy: &Policy, trusted: bool) {
    let mut head = Head::default();
    if parse::head(whole, policy, trusted, &mut head) != Ok(Status::Complete) {
        return;
    }
    let fresh = format!("{head:?}");
    let block = whole[head.fields_at..head.length].to_vec();
    if let Some(length) = parse::repeats(whole, &block) {
        if parse::same_fields(&whole[..length], policy, &mut head) {
            assert_eq!(format!("{head:?}"), fresh);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((policy, trusted, data)) = rules::policy(data) else {
        return;
    };
    let once = grown(data, [data.len()].into_iter(), &policy, trusted, false);
    let pieces = grown(data, rules::cuts(data), &policy, trusted, false);
    assert_eq!(once, pieces, "cut anywhere");
    if data.len() <= 600 {
        assert_eq!(once, grown(data, 1..=data.len(), &policy, trusted, false), "an octet at a time");
    }
    let gated = grown(data, rules::cuts(data), &policy, trusted, true);
    // A refusal may come with a later octet, which has not been sent.
    assert!(gated == once || gated == Ok(None) && once.is_err(), "{gated:?} {once:?}");
    if let Ok(Some((octets, _))) = once {
        repeated(&octets, &policy, trusted);
        let mut head = Head::default();
        let _ = parse::head(&octets, &policy, trusted, &mut head);
        let mut decoder = Decoder::new(head.fields.framing, &policy.limits);
        let _ = decoder.decode(&data[octets.len()..]);
        let _ = head.persistent();
    }
});
