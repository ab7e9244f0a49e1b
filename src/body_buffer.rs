//! Owns: the part of a request body that waits for its rest, decoded: in memory up to a limit, beyond it in a file that
//! has no name. And what the bodies of a worker may take together.
//! Rule: a byte that was taken is kept, whatever becomes of the file: where it cannot be written to, the body stays as far
//! as it is and its rest is to be streamed. What a body took goes back when it is dropped.
//! Never: reads a socket, waits for a client, calls the application.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::Arc;

use crate::http::body::Decoder;
use crate::http::Reject;

/// Decoded bytes of one body that are kept in memory.
pub const MEMORY_LIMIT: usize = 128 * 1024;
/// The same of all bodies of a worker: beyond it every byte goes to a file, so that many slow clients cannot fill memory.
const WORKER_MEMORY: usize = 32 << 20;
/// Read from the file at once where the application reads in small pieces.
const WINDOW: usize = 64 * 1024;

/// What the bodies of one worker share.
pub struct BodyStore {
    folder: PathBuf,
    in_memory: AtomicUsize,
    has_warned: AtomicBool,
}

impl BodyStore {
    /// `folder` is where files go.
    pub fn new(folder: PathBuf) -> BodyStore {
        BodyStore { folder, in_memory: AtomicUsize::new(0), has_warned: AtomicBool::new(false) }
    }

    /// False when there is not so much memory left for bodies.
    fn charge(&self, bytes: usize) -> bool {
        let more = |now: usize| now.checked_add(bytes).filter(|sum| *sum <= WORKER_MEMORY);
        self.in_memory.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    fn open(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.folder)
    }

    /// Once, as a full disk fails every upload.
    fn warn(&self, e: &io::Error) {
        if !self.has_warned.swap(true, Relaxed) {
            log::warn!(
                "Cannot keep a large request body in {}: {e}; such bodies are streamed to the application \
                 (--worker-tmp-dir)",
                self.folder.display()
            );
        }
    }
}

/// What becomes of a body that does not fit in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    ToFile,
    /// With so many decoded bytes the application is called, and reads the rest itself.
    Stream(usize),
}

/// The beginning of a body, or all of it, and where its decoder is.
pub struct BodyBuffer {
    decoder: Decoder,
    overflow: Overflow,
    store: Arc<BodyStore>,
    /// The first bytes, if they are in a file, and how many those are.
    file: Option<File>,
    in_file: u64,
    /// The bytes behind those of the file.
    memory: Vec<u8>,
    charged: usize,
    /// The application is to be called although bytes are missing.
    is_streamed: bool,
    /// How far it has been read.
    at: u64,
    /// A part of the file, for reads in small pieces, and where in the file it begins.
    window: Vec<u8>,
    window_at: u64,
}

impl BodyBuffer {
    pub fn new(decoder: Decoder, overflow: Overflow, store: Arc<BodyStore>) -> BodyBuffer {
        BodyBuffer {
            decoder,
            overflow,
            store,
            file: None,
            in_file: 0,
            memory: Vec::new(),
            charged: 0,
            is_streamed: false,
            at: 0,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Decoded bytes that are kept.
    pub fn length(&self) -> u64 {
        self.in_file + self.memory.len() as u64
    }

    /// Whether nothing of the body is missing.
    pub fn is_complete(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether the application can be called.
    pub fn is_ready(&self) -> bool {
        self.is_complete() || self.is_streamed
    }

    /// Where the decoding goes on behind the bytes that are kept.
    pub fn decoder(&self) -> Decoder {
        self.decoder.clone()
    }

    /// Takes what of `input` belongs to the body; returns how many bytes that are.
    ///
    /// Errors: the framing is wrong, or the body has more than `limit` bytes.
    pub fn take(&mut self, input: &[u8], limit: u64) -> Result<usize, Reject> {
        let mut taken = 0;
        while taken < input.len() && !self.decoder.is_done() {
            let rest = &input[taken..];
            let decoded = self.decoder.decode(rest)?;
            if self.length() + decoded.data.len() as u64 > limit {
                return Err(Reject::BodyTooLarge);
            }
            // A step over framing alone has none.
            if !decoded.data.is_empty() {
                self.keep(&rest[decoded.data]);
            }
            taken += decoded.consumed;
        }
        self.flush();
        Ok(taken)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let Overflow::Stream(enough) = self.overflow else {
            return self.keep_in_memory_or_file(bytes);
        };
        if !self.has_memory_for(bytes.len()) {
            self.is_streamed = true;
        }
        self.memory.extend_from_slice(bytes);
        self.is_streamed |= self.memory.len() >= enough;
    }

    fn keep_in_memory_or_file(&mut self, bytes: &[u8]) {
        // Once there is a file, `flush` moves what has come to it: one write for all chunks of a read.
        let fits = self.is_streamed || self.file.is_some() || self.has_memory_for(bytes.len());
        self.memory.extend_from_slice(bytes);
        if !fits {
            self.move_or_stream();
        }
    }

    fn flush(&mut self) {
        if self.file.is_some() && !self.is_streamed && !self.memory.is_empty() {
            self.move_or_stream();
        }
    }

    fn move_or_stream(&mut self) {
        if let Err(e) = self.move_to_file() {
            self.is_streamed = true;
            self.store.warn(&e);
        }
    }

    /// Makes room for so many bytes more, within the limits of this body and of all.
    fn has_memory_for(&mut self, bytes: usize) -> bool {
        let wanted = self.memory.len() + bytes;
        if wanted <= self.charged {
            return true;
        }
        let roomy = wanted.max(2 * self.charged).min(MEMORY_LIMIT);
        if wanted > MEMORY_LIMIT || !self.store.charge(roomy - self.charged) {
            return false;
        }
        self.charged = roomy;
        self.memory.reserve_exact(roomy - self.memory.len());
        true
    }

    /// Errors: not all could be written; what was is in the file, the rest is still in memory.
    fn move_to_file(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(self.store.open()?),
        };
        let mut written = 0;
        let result = loop {
            match file.write_at(&self.memory[written..], self.in_file + written as u64) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
            if written == self.memory.len() {
                break Ok(());
            }
        };
        self.in_file += written as u64;
        self.memory.drain(..written);
        if result.is_ok() {
            self.give_memory_back();
        }
        result
    }

    fn give_memory_back(&mut self) {
        self.store.in_memory.fetch_sub(std::mem::take(&mut self.charged), Relaxed);
        self.memory = Vec::new();
    }

    /// Bytes that have not been read.
    pub fn left(&self) -> u64 {
        self.length() - self.at
    }

    /// Whether the next bytes come from the file, so that having them may take a while.
    pub fn is_at_file(&self) -> bool {
        self.at < self.in_file && !self.window_has(self.at)
    }

    fn window_has(&self, at: u64) -> bool {
        at >= self.window_at && at - self.window_at < self.window.len() as u64
    }

    /// Reads some of the next bytes; none only at the end.
    ///
    /// Errors: the file's.
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = match &self.file {
            Some(file) if self.at < self.in_file => {
                let most = into.len().min(usize::try_from(self.in_file - self.at).unwrap_or(usize::MAX));
                read_at(file, &mut into[..most], self.at)?
            }
            _ => {
                let rest = &self.memory[(self.at - self.in_file) as usize..];
                let most = into.len().min(rest.len());
                into[..most].copy_from_slice(&rest[..most]);
                most
            }
        };
        self.at += read as u64;
        Ok(read)
    }

    /// Brings the next part of the file to memory, if that is where the next bytes are.
    pub fn fill_window(&mut self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.is_at_file()) else {
            return Ok(());
        };
        let most = WINDOW.min(usize::try_from(self.in_file - self.at).unwrap_or(WINDOW));
        self.window.resize(most, 0);
        let read = read_at(file, &mut self.window, self.at);
        self.window.truncate(*read.as_ref().unwrap_or(&0));
        self.window_at = self.at;
        read.map(|_| ())
    }

    /// The next bytes, as far as they are in memory.
    pub fn run(&self) -> &[u8] {
        if self.at >= self.in_file {
            return &self.memory[(self.at - self.in_file) as usize..];
        }
        match self.window_has(self.at) {
            true => &self.window[(self.at - self.window_at) as usize..],
            false => &[],
        }
    }

    /// Passes over so many bytes of `run`.
    pub fn consume(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }
}

impl Drop for BodyBuffer {
    fn drop(&mut self) {
        self.store.in_memory.fetch_sub(self.charged, Relaxed);
    }
}

/// Errors: the file's; that it is shorter than what was written to it.
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, at) {
            Ok(0) if !into.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Framing;
    use crate::http::Limits;

    const LIMITS: Limits = Limits { request_line: 8190, fields: 100, field_size: 8190, head: 65_536 };

    fn store(folder: &str) -> Arc<BodyStore> {
        Arc::new(BodyStore::new(folder.into()))
    }

    fn buffer(length: usize, overflow: Overflow, store: &Arc<BodyStore>) -> BodyBuffer {
        BodyBuffer::new(Decoder::new(Framing::Length(length as u64), &LIMITS), overflow, store.clone())
    }

    fn temp() -> String {
        std::env::temp_dir().to_string_lossy().into_owned()
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    fn feed(buffer: &mut BodyBuffer, body: &[u8]) {
        for part in body.chunks(50_000) {
            assert_eq!(buffer.take(part, u64::MAX), Ok(part.len()));
        }
    }

    /// In small pieces, then in large ones.
    fn read_back(buffer: &mut BodyBuffer) -> Vec<u8> {
        let mut all = Vec::new();
        while buffer.left() > 0 && all.len() < 100_000 {
            buffer.fill_window().unwrap();
            let run = buffer.run();
            let taken = run.len().min(777);
            assert!(taken > 0);
            all.extend_from_slice(&run[..taken]);
            buffer.consume(taken);
        }
        let mut part = vec![0; 30_000];
        while buffer.left() > 0 {
            let read = buffer.read(&mut part).unwrap();
            all.extend_from_slice(&part[..read]);
        }
        all
    }

    #[test]
    fn what_is_small_stays_in_memory_and_what_is_large_goes_to_a_file() {
        let store = store(&temp());
        for length in [1, 1000, MEMORY_LIMIT, MEMORY_LIMIT + 1, 1_000_000] {
            let mut body = buffer(length, Overflow::ToFile, &store);
            feed(&mut body, &bytes(length));
            assert!(body.is_complete());
            assert_eq!(body.file.is_some(), length > MEMORY_LIMIT);
            assert!(body.charged <= MEMORY_LIMIT && (body.file.is_none() || body.charged == 0));
            assert!(body.memory.capacity() <= MEMORY_LIMIT);
            assert_eq!(read_back(&mut body), bytes(length));
        }
        assert_eq!(store.in_memory.load(Relaxed), 0);
    }

    /// What comes as one-byte chunks is the same body, and none of it waits in memory behind the file.
    #[test]
    fn small_chunks_go_to_the_file_together() {
        let store = store(&temp());
        let all = bytes(MEMORY_LIMIT + 20_000);
        let mut body =
            BodyBuffer::new(Decoder::new(Framing::Chunked, &LIMITS), Overflow::ToFile, store.clone());
        for part in all.chunks(5_000) {
            let chunks: Vec<u8> =
                part.iter().flat_map(|byte| [b"1\r\n".as_slice(), &[*byte], b"\r\n"].concat()).collect();
            assert_eq!(body.take(&chunks, u64::MAX), Ok(chunks.len()));
            assert!(body.file.is_none() || body.memory.capacity() == 0 && body.charged == 0);
        }
        // The pieces of one read wait for each other.
        let before = body.in_file;
        body.keep(b"1");
        body.keep(b"2");
        assert_eq!((body.in_file, body.memory.as_slice()), (before, b"12".as_slice()));
        assert_eq!(body.take(b"0\r\n\r\n", u64::MAX), Ok(5));
        assert!(body.is_complete() && body.in_file == before + 2);
        assert_eq!(read_back(&mut body), [all.as_slice(), b"12"].concat());
    }

    #[test]
    fn beyond_the_memory_of_a_worker_small_bodies_go_to_files() {
        let store = store(&temp());
        let bodies: Vec<_> = (0..WORKER_MEMORY / MEMORY_LIMIT)
            .map(|_| {
                let mut body = buffer(MEMORY_LIMIT, Overflow::ToFile, &store);
                feed(&mut body, &bytes(MEMORY_LIMIT));
                assert!(body.file.is_none());
                body
            })
            .collect();
        let mut another = buffer(10, Overflow::ToFile, &store);
        feed(&mut another, &bytes(10));
        assert!(another.file.is_some() && another.is_complete());
        assert_eq!(read_back(&mut another), bytes(10));
        drop(bodies);
        assert_eq!(store.in_memory.load(Relaxed), 0);
    }

    #[test]
    fn without_a_folder_the_body_is_kept_as_far_as_it_is_and_streamed() {
        let store = store("/nonexistent");
        let mut body = buffer(1_000_000, Overflow::ToFile, &store);
        let mut sent = 0;
        while !body.is_ready() {
            feed(&mut body, &bytes(1_000_000)[sent..sent + 40_000]);
            sent += 40_000;
        }
        assert!(!body.is_complete() && sent > MEMORY_LIMIT);
        assert!(
            matches!(body.decoder(), Decoder::Length { remaining } if remaining == 1_000_000 - sent as u64)
        );
        assert_eq!(read_back(&mut body), &bytes(1_000_000)[..sent]);
        assert!(store.has_warned.load(Relaxed));
    }

    #[test]
    fn a_disk_that_is_full_loses_nothing() {
        let store = store(&temp());
        let mut body = buffer(1_000_000, Overflow::ToFile, &store);
        feed(&mut body, &bytes(200_000));
        // As a file that nothing can be written to.
        let number = std::os::fd::AsRawFd::as_raw_fd(body.file.as_ref().unwrap());
        body.file = Some(File::open(format!("/proc/self/fd/{number}")).unwrap());
        feed(&mut body, &bytes(250_000)[200_000..]);
        assert!(body.is_ready() && !body.is_complete());
        assert_eq!(read_back(&mut body), bytes(250_000));
    }

    #[test]
    fn a_streamed_body_is_ready_at_its_mark() {
        let store = store(&temp());
        let mut body = buffer(1_000_000, Overflow::Stream(MEMORY_LIMIT), &store);
        feed(&mut body, &bytes(100_000));
        assert!(!body.is_ready());
        feed(&mut body, &bytes(150_000)[100_000..]);
        assert!(body.is_ready() && body.file.is_none());
        assert_eq!(read_back(&mut body), bytes(150_000));
    }

    #[test]
    fn what_is_over_the_limit_is_refused_and_what_follows_is_left() {
        let store = store(&temp());
        let mut body =
            BodyBuffer::new(Decoder::new(Framing::Chunked, &LIMITS), Overflow::ToFile, store.clone());
        assert_eq!(body.take(b"5\r\nhello\r\n", 5), Ok(10));
        assert_eq!(body.take(b"1\r\nx", 5), Err(Reject::BodyTooLarge));
        let mut body = BodyBuffer::new(Decoder::new(Framing::Chunked, &LIMITS), Overflow::ToFile, store);
        assert_eq!(body.take(b"5\r\nhello\r\n0\r\n\r\nGET /", 5), Ok(15));
        assert!(body.is_complete());
        assert_eq!(body.run(), b"hello");
    }
}
