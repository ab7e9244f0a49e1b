//! Owns: which request goes to which connection, and when; the loop of one thread that does it.
//! Rule: nothing is done per request that could make the next one late: no allocation, no output.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use fastrand::Rng;

use crate::args::Options;
use crate::connection::{Connection, Happening, State};
use crate::poller::Poller;
use crate::record::{Nanos, Outcome, Record};
use crate::{request, schedule};

const BUFFER: usize = 65_536;

/// Where a connection that has become free finds its next request.
enum Supply {
    Nothing,
    /// Open loop: in the queues.
    Queues,
    /// Closed loop: so many are still to be made, none after that moment.
    Fresh(usize, Nanos),
}

pub struct Load<'a> {
    options: &'a Options,
    octets: Vec<Vec<u8>>,
    poller: Poller,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    records: Vec<Record>,
    supply: Supply,
    /// One for all, or with `--pin` one per connection.
    queues: Vec<VecDeque<usize>>,
    turn: usize,
    busy: usize,
    origin: Instant,
    random: Rng,
    pub announced: u64,
    pub idle_closes: u64,
    pub statuses: BTreeMap<u16, u64>,
}

impl<'a> Load<'a> {
    /// `per_source`: after so many connections the next address of 127.0.0.0/8 is their source.
    pub fn new(options: &'a Options, connections: usize, per_source: Option<usize>) -> io::Result<Self> {
        let source = |index| per_source.map(|per| source(index / per));
        Ok(Load {
            options,
            octets: options.classes.iter().map(|class| request::octets(class, options)).collect(),
            poller: Poller::new()?,
            connections: (0..connections).map(|i| Connection::new(i, options.server, source(i))).collect(),
            buffer: vec![0; BUFFER],
            records: Vec::new(),
            supply: Supply::Nothing,
            queues: Vec::new(),
            turn: 0,
            busy: 0,
            origin: Instant::now(),
            random: Rng::with_seed(options.seed),
            announced: 0,
            idle_closes: 0,
            statuses: BTreeMap::new(),
        })
    }

    /// One request of the first class on every connection, so that each is open and known to the server.
    pub fn warm(&mut self, at_once: usize) -> io::Result<()> {
        self.begin(vec![Record::due(0, 0); self.connections.len()], Supply::Nothing, 0);
        let until = self.drain_end(0);
        for index in 0..self.connections.len() {
            while self.busy >= at_once && self.now() < until {
                self.wait(until)?;
            }
            self.start(index, index);
        }
        while self.busy > 0 && self.now() < until {
            self.wait(until)?;
        }
        if self.records.iter().all(|record| record.outcome == Outcome::Answered) {
            return Ok(());
        }
        Err(io::Error::other(format!("warm-up: {}", self.outcomes())))
    }

    pub fn open(&mut self, records: Vec<Record>, pin: bool) -> io::Result<Vec<Record>> {
        let queues = if pin { self.connections.len() } else { 1 };
        let end = self.drain_end(records.last().map_or(0, |record| record.at));
        self.begin(records, Supply::Queues, queues);
        let mut next = 0;
        while next < self.records.len() || self.unfinished() {
            let now = self.now();
            while next < self.records.len() && self.records[next].at <= now {
                self.arrive(next, pin);
                next += 1;
            }
            if now > end {
                break;
            }
            self.wait(self.records.get(next).map_or(end, |record| record.at))?;
        }
        Ok(std::mem::take(&mut self.records))
    }

    pub fn closed(&mut self, requests: usize, seconds: f64) -> io::Result<Vec<Record>> {
        let stop = (seconds * 1e9) as Nanos;
        let end = self.drain_end(stop);
        self.begin(Vec::with_capacity(requests.min(1 << 22)), Supply::Fresh(requests, stop), 0);
        for index in 0..self.connections.len() {
            if let Some(number) = self.take(index) {
                self.start(index, number);
            }
        }
        while self.busy > 0 && self.now() < end {
            self.wait(end)?;
        }
        Ok(std::mem::take(&mut self.records))
    }

    /// How many connections the server has not closed.
    pub fn count_open(&mut self) -> io::Result<usize> {
        loop {
            let found = self.poller.look_once()?;
            if found == 0 {
                return Ok(self.connections.iter().filter(|c| c.state != State::Closed).count());
            }
            self.handle(found);
        }
    }

    fn begin(&mut self, records: Vec<Record>, supply: Supply, queues: usize) {
        self.records = records;
        self.supply = supply;
        self.queues = vec![VecDeque::new(); queues];
        (self.announced, self.idle_closes) = (0, 0);
        self.statuses.clear();
        self.origin = Instant::now();
    }

    fn now(&self) -> Nanos {
        self.origin.elapsed().as_nanos() as Nanos
    }

    fn drain_end(&self, last: Nanos) -> Nanos {
        last.saturating_add(self.options.drain.as_nanos() as Nanos)
    }

    /// How many requests had which outcome, and which statuses the failed ones had.
    fn outcomes(&self) -> String {
        let mut counts = BTreeMap::new();
        for record in &self.records {
            *counts.entry(record.outcome.name()).or_insert(0) += 1;
        }
        let words: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        format!("{} {:?}", words.join(", "), self.statuses)
    }

    fn unfinished(&self) -> bool {
        self.busy > 0 || self.queues.iter().any(|queue| !queue.is_empty())
    }

    fn wait(&mut self, until: Nanos) -> io::Result<()> {
        let found = self.poller.wait(until.saturating_sub(self.now()))?;
        self.handle(found);
        Ok(())
    }

    fn handle(&mut self, found: usize) {
        for event in 0..found {
            let Some(index) = self.poller.event(event) else { continue };
            let connection = &mut self.connections[index];
            let octets = self.records.get(connection.request).map_or(0, |record| record.class as usize);
            let happening = connection.ready(&self.octets[octets], &self.poller, &mut self.buffer);
            self.note(index, happening);
        }
    }

    // An open-loop request is due.
    fn arrive(&mut self, number: usize, pin: bool) {
        self.records[number].lag = self.now() - self.records[number].at;
        let all = self.connections.len();
        if pin {
            let index = number % all;
            return if self.connections[index].free() {
                self.start(index, number)
            } else {
                self.queues[index].push_back(number)
            };
        }
        let found = (0..all).map(|i| (self.turn + i) % all).find(|&i| self.connections[i].free());
        match found {
            Some(index) => {
                self.turn = (index + 1) % all;
                self.start(index, number);
            }
            None => self.queues[0].push_back(number),
        }
    }

    fn start(&mut self, index: usize, number: usize) {
        self.busy += 1;
        let class = self.records[number].class as usize;
        let happening = self.connections[index].start(number, &self.octets[class], &self.poller);
        self.note(index, happening);
    }

    /// Writes down what has happened, and gives a connection that is free its next request; which may be over at once.
    fn note(&mut self, index: usize, mut happening: Happening) {
        loop {
            match happening {
                Happening::Nothing => return,
                Happening::IdleClose => return self.idle_closes += 1,
                Happening::Over(outcome) => self.finish(index, outcome),
            }
            let Some(number) = self.take(index) else { return };
            self.busy += 1;
            let class = self.records[number].class as usize;
            happening = self.connections[index].start(number, &self.octets[class], &self.poller);
        }
    }

    fn finish(&mut self, index: usize, outcome: Outcome) {
        self.busy -= 1;
        let now = self.now();
        let connection = &self.connections[index];
        let record = &mut self.records[connection.request];
        record.latency = now - record.at;
        record.outcome = outcome;
        match outcome {
            Outcome::Answered => {}
            Outcome::Failed => *self.statuses.entry(connection.answer.status).or_default() += 1,
            _ => return,
        }
        self.announced += u64::from(!connection.answer.keep);
    }

    fn take(&mut self, index: usize) -> Option<usize> {
        let now = self.now();
        match &mut self.supply {
            Supply::Nothing => None,
            Supply::Queues if self.queues.len() == 1 => self.queues[0].pop_front(),
            Supply::Queues => self.queues[index].pop_front(),
            Supply::Fresh(left, stop) if *left > 0 && now < *stop => {
                *left -= 1;
                let class = schedule::draw(&self.options.classes, &mut self.random);
                self.records.push(Record::due(now, class));
                Some(self.records.len() - 1)
            }
            Supply::Fresh(..) => None,
        }
    }
}

fn source(number: usize) -> SocketAddr {
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + number as u32), 0).into()
}
