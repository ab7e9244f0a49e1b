//! Owns: metrics as statsd and DogStatsD take them, with gunicorn's names.
//! Rule: one metric, one datagram; one that is not taken is lost, and nobody waits for it.
//! Never: counts anything itself; decides when.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use crate::config::logging;
use crate::remote::Remote;

pub struct Statsd {
    remote: Remote,
    prefix: String,
    /// With what introduces them.
    tags: String,
    /// Whether the arbiter tells of connections that wait.
    pub backlog: bool,
}

impl Statsd {
    /// Errors: the host is not known.
    pub fn new(config: &logging::Statsd) -> io::Result<Statsd> {
        let remote = Remote::new(&config.address)?;
        let tags = if config.tags.is_empty() { String::new() } else { format!("|#{}", config.tags) };
        Ok(Statsd { remote, prefix: config.prefix.clone(), tags, backlog: config.backlog })
    }

    /// A request has been answered.
    pub fn request(&self, status: u16, elapsed: Duration) {
        let millis = elapsed.as_micros() as f64 / 1000.0;
        self.send("gunicorn.request.duration", format_args!("{millis:?}|ms"));
        self.count("gunicorn.requests");
        self.count(&format!("gunicorn.request.status.{status}"));
    }

    /// A line of the error log at this level.
    pub fn line(&self, level: &str) {
        self.count(&format!("gunicorn.log.{level}"));
    }

    pub fn workers(&self, count: usize) {
        self.send("gunicorn.workers", format_args!("{count}|g"));
    }

    pub fn waiting(&self, connections: u64) {
        self.send("gunicorn.backlog", format_args!("{connections}|h"));
    }

    /// A metric of somebody else's; `kind` is gunicorn's word for what it is, another one is ignored.
    pub fn metric(&self, name: &str, value: &str, kind: &str) {
        match kind {
            "gauge" => self.send(name, format_args!("{value}|g")),
            "counter" => self.send(name, format_args!("{value}|c|@1.0")),
            "histogram" => self.send(name, format_args!("{value}|h")),
            "timer" => self.send(name, format_args!("{value}|ms")),
            _ => {}
        }
    }

    fn count(&self, name: &str) {
        self.send(name, "1|c|@1.0");
    }

    fn send(&self, name: &str, what: impl Display) {
        let Statsd { prefix, tags, .. } = self;
        self.remote.send(format!("{prefix}{name}:{what}{tags}").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::logging::Collector;
    use std::net::UdpSocket;

    #[test]
    fn metrics_are_those_of_gunicorn() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        let address = Collector::Udp { host: "127.0.0.1".to_string(), port };
        let (prefix, tags) = ("shop.".to_string(), "env:prod".to_string());
        let statsd = Statsd::new(&logging::Statsd { address, prefix, tags, backlog: false }).unwrap();
        statsd.request(200, Duration::from_micros(12_300));
        statsd.line("error");
        statsd.workers(3);
        statsd.waiting(0);
        statsd.metric("mine", "4", "timer");
        statsd.metric("mine", "4", "nonsense");
        statsd.metric("mine", "5", "counter");
        for wanted in [
            "gunicorn.request.duration:12.3|ms",
            "gunicorn.requests:1|c|@1.0",
            "gunicorn.request.status.200:1|c|@1.0",
            "gunicorn.log.error:1|c|@1.0",
            "gunicorn.workers:3|g",
            "gunicorn.backlog:0|h",
            "mine:4|ms",
            "mine:5|c|@1.0",
        ] {
            let mut octets = [0; 200];
            let length = server.recv(&mut octets).unwrap();
            assert_eq!(String::from_utf8_lossy(&octets[..length]), format!("shop.{wanted}|#env:prod"));
        }
    }
}
