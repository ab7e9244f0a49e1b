//! Owns: interim responses that the application has sent before its own: 103 (Early Hints, RFC 8297).
//! Rule: one leaves whole before anything else does, or the connection carries nothing more; while octets of it leave,
//! nobody else answers. Nothing of it counts as the response.
//! Never: writes the fields; that is the caller's.

use super::reply::Gone;
use super::{Exchange, Release};
use crate::http::response::CONTINUE;
use crate::http::Version;

impl Exchange<'_> {
    /// Whether an interim response would reach the client as one. RFC 9110 §15.2: "A server MUST NOT send a 1xx response
    /// to an HTTP/1.0 client."
    pub fn takes_interim(&self) -> bool {
        let reply = &self.reply;
        self.conn.head.start.version == Version::Http11 && !self.has_begun() && !reply.gone
    }

    /// Sends a head with a status of 1xx, whole before it returns. A client that waits for its 100 (Continue) gets that
    /// first.
    pub fn send_interim(&mut self, head: &[u8], release: Release<'_>) -> Result<(), Gone> {
        if std::mem::take(&mut self.body.continue_due) {
            self.desk.out.extend_from_slice(CONTINUE);
        }
        self.desk.out.extend_from_slice(head);
        self.send_out(release)?;
        // The time of the call goes on, and its answer is still anybody's to give.
        self.reply.claimed = !self.site.claim.pause_reply();
        Ok(())
    }
}
