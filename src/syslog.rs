//! Owns: what a line looks like to syslog (RFC 3164, without time and host, which the receiver adds): `<PRI>TAG: [pid] text`.
//! Rule: gunicorn's tags, `gunicorn.NAME.error` and `gunicorn.NAME.access`; lines that were lost are counted to whoever
//! gets the next.
//! Never: waits.

use std::io;

use crate::config::logging;
use crate::remote::Remote;
use crate::sys::clock::Nanos;
use crate::sys::process;

/// How bad it is (RFC 3164, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Info = 6,
    Debug = 7,
}

pub struct Syslog {
    remote: Remote,
    facility: u8,
    tag: String,
    /// Whether the access log goes there too.
    pub access: bool,
}

impl Syslog {
    /// Errors: the host is not known.
    pub fn new(config: &logging::Syslog) -> io::Result<Syslog> {
        let remote = Remote::new(&config.address)?;
        Ok(Syslog { remote, facility: config.facility, tag: config.tag.clone(), access: config.access })
    }

    pub fn meet(&self, patience: Nanos) {
        self.remote.meet(patience);
    }

    /// A line of the error log.
    pub fn report(&self, severity: Severity, text: &str) {
        self.send("error", severity, text.as_bytes());
        match self.remote.take_lost() {
            0 => {}
            lost => {
                let text = format!("{lost} line(s) were lost on their way to syslog");
                self.send("error", Severity::Warning, text.as_bytes());
            }
        }
    }

    /// A line of the access log, without its end.
    pub fn access(&self, line: &[u8]) {
        self.send("access", Severity::Info, line);
    }

    pub fn flush(&self) {
        self.remote.flush();
    }

    fn send(&self, log: &str, severity: Severity, text: &[u8]) {
        let priority = self.facility * 8 + severity as u8;
        let mut line = format!("<{priority}>{}.{log}: [{}] ", self.tag, process::id()).into_bytes();
        line.extend_from_slice(text);
        self.remote.send(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::logging::Collector;
    use std::net::UdpSocket;

    #[test]
    fn lines_carry_priority_tag_and_pid() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let address = Collector::Udp { host: "127.0.0.1".to_string(), port };
        let tag = "gunicorn.shop".to_string();
        let syslog = Syslog::new(&logging::Syslog { address, facility: 16, tag, access: true }).unwrap();
        let heard = || {
            let mut octets = [0; 200];
            let length = server.recv(&mut octets).unwrap();
            String::from_utf8(octets[..length].to_vec()).unwrap()
        };
        let pid = process::id();
        syslog.report(Severity::Warning, "careful");
        assert_eq!(heard(), format!("<132>gunicorn.shop.error: [{pid}] careful"));
        syslog.access(b"GET /");
        assert_eq!(heard(), format!("<134>gunicorn.shop.access: [{pid}] GET /"));
    }
}
