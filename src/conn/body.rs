//! Owns: a request's body until the application can be called, and the 100 (Continue) that a client waits for.
//! Rule: the application is called when nothing of the request is missing (`request_buffering` says when it is). A body
//! that is here whole when its head is read stays in the scratch and is not copied; of any other, each byte is decoded
//! into the connection's buffer as it comes, so that `pending` holds no more than the head until it is complete.
//! Never: waits; reads what follows the body.

use super::{Conn, Next, Settings, State, Turn};
use crate::body_buffer::{BodyBuffer, Overflow, MEMORY_LIMIT};
use crate::buffer::READ_SIZE;
use crate::config::Buffering;
use crate::http::body::Decoder;
use crate::http::response::CONTINUE;
use crate::http::{Framing, Reject};
use crate::timers::Pace;

impl Conn {
    /// Takes what of the body is in the scratch. True when the application can be called.
    pub(super) fn take_body(&mut self, turn: &mut Turn<'_>) -> Result<bool, Reject> {
        let framing = self.head.fields.framing;
        if framing == Framing::Empty {
            return Ok(true);
        }
        let limit = turn.settings.body_limit;
        if matches!(framing, Framing::Length(length) if length > limit) {
            return Err(Reject::BodyTooLarge);
        }
        let scratch = &mut turn.desk.scratch;
        let here = &scratch.unread()[self.head.length..];
        if self.body.is_none() {
            if self.has_come_whole(here, turn.settings)? {
                return Ok(true);
            }
            let overflow = self.overflow(turn.settings);
            if matches!(overflow, Overflow::Stream(enough) if here.len() >= enough) {
                return Ok(true);
            }
            if !here.is_empty() {
                let decoder = Decoder::new(framing, &turn.settings.policy.limits);
                let body = BodyBuffer::new(decoder, overflow, turn.settings.bodies.clone());
                self.body = Some(Box::new(body));
            }
        }
        let Some(body) = self.body.as_mut().filter(|_| !here.is_empty()) else {
            return Ok(false);
        };
        let taken = body.take(here, limit)?;
        scratch.remove(self.head.length, taken);
        Ok(body.is_ready())
    }

    fn has_come_whole(&mut self, here: &[u8], settings: &Settings) -> Result<bool, Reject> {
        match self.head.fields.framing {
            Framing::Empty => Ok(true),
            Framing::Length(length) => Ok(here.len() as u64 >= length),
            Framing::Chunked => {
                let mut decoder = Decoder::new(Framing::Chunked, &settings.policy.limits);
                let (mut seen, mut length) = (0, 0);
                while seen < here.len() && !decoder.is_done() {
                    let decoded = decoder.decode(&here[seen..])?;
                    seen += decoded.consumed;
                    length += decoded.data.len() as u64;
                    if length > settings.body_limit {
                        return Err(Reject::BodyTooLarge);
                    }
                }
                self.chunked_length = decoder.is_done().then_some(length);
                Ok(decoder.is_done())
            }
        }
    }

    /// A proxy that is trusted has read the whole body before it sends the first byte of it (nginx, proxy_request_buffering).
    /// Whom only `*` trusts may be anybody.
    fn overflow(&self, settings: &Settings) -> Overflow {
        let fields = &self.head.fields;
        let has_length = matches!(fields.framing, Framing::Length(_));
        match settings.buffering {
            // The application's first read asks for the body.
            Buffering::Off if fields.expect_continue => Overflow::Stream(0),
            Buffering::Off => Overflow::Stream(READ_SIZE),
            Buffering::Auto if has_length && settings.trust.is_proxy(self.speaker()) => {
                Overflow::Stream(MEMORY_LIMIT)
            }
            Buffering::Auto | Buffering::On => Overflow::ToFile,
        }
    }

    pub(super) fn wait_for_body(&mut self, turn: &mut Turn<'_>) -> Next {
        if self.state != State::Body {
            self.go(State::Body);
            self.pace = Pace::new(turn.now, turn.settings.body_timeout);
            if self.head.fields.expect_continue && self.body.is_none() && !self.send_continue() {
                return self.closed();
            }
        }
        self.park(turn)
    }

    /// RFC 9110 §10.1.1: sent unless the body has begun to come. False when only a part of it could be sent, after which
    /// nothing can follow.
    fn send_continue(&self) -> bool {
        match self.transport.send(CONTINUE, false) {
            Ok(sent) => sent == CONTINUE.len(),
            // A client that has no room for these bytes need not wait for them; one that has gone is noticed by the next
            // read.
            Err(_) => true,
        }
    }

    /// Whether `bytes` behind the head, or what was kept, hold the whole body.
    pub(crate) fn body_is_whole(&self, bytes: usize, kept: Option<&BodyBuffer>) -> bool {
        match (kept, self.head.fields.framing) {
            (Some(kept), _) => kept.is_complete(),
            (None, Framing::Empty) => true,
            (None, Framing::Length(length)) => bytes as u64 >= length,
            (None, Framing::Chunked) => self.chunked_length.is_some(),
        }
    }

    /// The decoded length of the body, if it is known before it is read.
    pub(crate) fn body_length(&self, kept: Option<&BodyBuffer>) -> Option<u64> {
        match (self.head.fields.framing, kept) {
            (Framing::Empty, _) => Some(0),
            (Framing::Length(length), _) => Some(length),
            (Framing::Chunked, Some(kept)) => kept.is_complete().then(|| kept.length()),
            (Framing::Chunked, None) => self.chunked_length,
        }
    }
}
