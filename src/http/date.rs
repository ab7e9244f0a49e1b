//! Owns: the `Server` and `Date` lines that begin every response.
//! Rule: they are made once a second, however many responses there are (RFC 9110 §6.6.1).
//! Never: reads a clock; the caller says what time it is.

use crate::version;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

/// 9999-12-31T23:59:59Z, the last second that an IMF-fixdate can name.
const LAST_SECOND: u64 = 253_402_300_799;

/// `Server: rgunicorn\r\nDate: <IMF-fixdate>\r\n` for the second last asked for.
#[derive(Clone, Debug)]
pub struct ServerDate {
    second: u64,
    block: Vec<u8>,
}

impl ServerDate {
    pub fn new() -> ServerDate {
        let mut made = ServerDate { second: 0, block: Vec::with_capacity(64) };
        made.make(0);
        made
    }

    #[inline]
    pub fn at(&mut self, unix_seconds: u64) -> &[u8] {
        if unix_seconds != self.second {
            self.make(unix_seconds);
        }
        &self.block
    }

    fn make(&mut self, second: u64) {
        // httpdate panics beyond the year 9999.
        let time = UNIX_EPOCH + Duration::from_secs(second.min(LAST_SECOND));
        let date = httpdate::HttpDate::from(time);
        self.second = second;
        self.block.clear();
        // Writing into a Vec cannot fail.
        let _ = write!(self.block, "{}Date: {date}\r\n", version::server_line());
    }
}

impl Default for ServerDate {
    fn default() -> ServerDate {
        ServerDate::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_is_an_imf_fixdate() {
        let mut date = ServerDate::new();
        let table: [(u64, &str); 4] = [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_778, "Sun, 06 Nov 1994 08:49:38 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (second, text) in table {
            let expected = format!("Server: rgunicorn\r\nDate: {text}\r\n");
            assert_eq!(date.at(second), expected.as_bytes());
            assert_eq!(date.at(second), expected.as_bytes());
        }
    }
}
