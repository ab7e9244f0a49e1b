//! A chunked body has the same content, end and refusal whatever the segmentation, and what is written here is read here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rules::http::body::Decoder;
use rules::http::{response, Framing, Limits, Reject};

/// The content so far, the octets that were consumed, and the refusal or whether the body is over.
type Outcome = (Vec<u8>, usize, Result<bool, Reject>);

fn decoded(data: &[u8], ends: impl Iterator<Item = usize>, framing: Framing, limits: &Limits) -> Outcome {
    let (mut decoder, mut content, mut at) = (Decoder::new(framing, limits), Vec::new(), 0);
    for end in ends {
        while at < end && !decoder.is_done() {
            match decoder.decode(&data[at..end]) {
                Ok(step) => {
                    assert!(step.consumed > 0 && step.data.end <= step.consumed && step.consumed <= end - at);
                    content.extend_from_slice(&data[at + step.data.start..at + step.data.end]);
                    at += step.consumed;
                }
                // Said again, whatever comes.
                Err(reject) => {
                    assert_eq!(decoder.decode(b"0\r\n\r\n"), Err(reject));
                    return (content, 0, Err(reject));
                }
            }
        }
    }
    assert!(content.len() <= at);
    (content, at, Ok(decoder.is_done()))
}

fuzz_target!(|data: &[u8]| {
    let Some((policy, _, data)) = rules::policy(data) else {
        return;
    };
    let limits = &policy.limits;
    for framing in [Framing::Chunked, Framing::Length(data.len() as u64 / 2)] {
        let once = decoded(data, [data.len()].into_iter(), framing, limits);
        assert_eq!(once, decoded(data, rules::cuts(data), framing, limits));
        if data.len() <= 2000 {
            assert_eq!(once, decoded(data, 1..=data.len(), framing, limits));
        }
    }
    // What this server sends as a chunked body is one.
    let mut body = Vec::new();
    for piece in data.chunks(1 + data.len() / 3) {
        response::chunk_size(piece.len(), &mut body);
        body.extend_from_slice(piece);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    let length = body.len();
    assert_eq!(decoded(&body, [length].into_iter(), Framing::Chunked, limits), (data.to_vec(), length, Ok(true)));
});
