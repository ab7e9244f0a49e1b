//! A PROXY header ends at the same octet and names the same client whatever the segmentation, and is bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rules::proxy_protocol::{header, Header, Malformed, Mode, Origin, MOST_OCTETS};

fn read(data: &[u8], ends: impl Iterator<Item = usize>, mode: Mode) -> Result<Header, Malformed> {
    for end in ends {
        match header(&data[..end], mode)? {
            Header::Partial => assert!(end < MOST_OCTETS, "an endless header is held"),
            complete => return Ok(complete),
        }
    }
    Ok(Header::Partial)
}

fuzz_target!(|data: &[u8]| {
    let [first, data @ ..] = data else {
        return;
    };
    let mode = [Mode::V1, Mode::V2, Mode::Auto][usize::from(first % 3)];
    let once = read(data, [data.len()].into_iter(), mode);
    assert_eq!(once, read(data, rules::cuts(data), mode));
    if data.len() <= 1000 {
        assert_eq!(once, read(data, 1..=data.len(), mode));
    }
    if let Ok(Header::Complete { length, origin }) = once {
        assert!(length <= data.len() && length <= MOST_OCTETS);
        // What is behind it has no say.
        assert_eq!(header(&data[..length], mode), once);
        if let Some(origin) = origin {
            assert_eq!(origin.client.is_ipv4(), origin.proxy.is_ipv4());
            assert_eq!(origin.to_string().parse::<Origin>(), Ok(origin));
        }
    }
});
