//! Owns: every reason for which the server itself answers a request, with its status and its page.
//! Rule: an answer consists of fixed text; no octet of a request is ever echoed.
//! Never: decides when to refuse, writes to a socket or a log.

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    RequestLine,
    Method,
    Target,
    Version,
    UnsupportedVersion,
    UriTooLong,
    BareLineFeed,
    FieldName,
    FieldValue,
    ObsoleteFolding,
    UnderscoreInName,
    FieldTooLarge,
    TooManyFields,
    HeadTooLarge,
    Host,
    DuplicateHost,
    DuplicateContentType,
    ContentLength,
    DuplicateContentLength,
    TransferEncoding,
    TransferEncodingAndLength,
    TransferEncodingInHttp10,
    UnknownTransferCoding,
    UnknownExpectation,
    ContradictorySchemes,
    ChunkSize,
    ChunkExtension,
    ChunkExtensionsTooLarge,
    ChunkEnd,
    Trailer,
    ForbiddenTrailer,
    TrailersTooLarge,
    IncompleteBody,
    ProxyHeader,
    Forbidden,
    UnsupportedMethod,
    RequestTimeout,
    BodyTooLarge,
    InternalError,
    ScriptName,
    Unavailable,
    AppTimeout,
    PlainOnTls,
    Overloaded,
    ClientGone,
}

impl Reject {
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// One line for the page and for the log.
    pub fn text(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> (u16, &'static str) {
        match self {
            Reject::RequestLine => (400, "Invalid Request Line"),
            Reject::Method => (400, "Invalid Method"),
            Reject::Target => (400, "Invalid Request Target"),
            Reject::Version => (400, "Invalid HTTP Version"),
            Reject::UnsupportedVersion => (505, "HTTP Version Not Supported"),
            Reject::UriTooLong => (414, "Request Line is too large"),
            Reject::BareLineFeed => (400, "Bare LF is not a line end"),
            Reject::FieldName => (400, "Invalid HTTP Header name"),
            Reject::FieldValue => (400, "Invalid HTTP Header value"),
            Reject::ObsoleteFolding => (400, "Obsolete line folding is unacceptable"),
            Reject::UnderscoreInName => (400, "Underscore in HTTP Header name"),
            Reject::FieldTooLarge => (431, "Error parsing headers: limit request headers fields size"),
            Reject::TooManyFields => (431, "Error parsing headers: limit request headers fields"),
            Reject::HeadTooLarge => (431, "Error parsing headers: max buffer headers"),
            Reject::Host => (400, "Invalid Host"),
            Reject::DuplicateHost => (400, "More than one Host"),
            Reject::DuplicateContentType => (400, "More than one Content-Type"),
            Reject::ContentLength => (400, "Invalid Content-Length"),
            Reject::DuplicateContentLength => (400, "More than one Content-Length"),
            Reject::TransferEncoding => (400, "Invalid Transfer-Encoding"),
            Reject::TransferEncodingAndLength => (400, "Transfer-Encoding together with Content-Length"),
            Reject::TransferEncodingInHttp10 => (400, "Transfer-Encoding in HTTP/1.0"),
            Reject::UnknownTransferCoding => (501, "Unsupported transfer coding"),
            Reject::UnknownExpectation => (417, "Unable to comply with expectation"),
            Reject::ContradictorySchemes => (400, "Contradictory scheme headers"),
            Reject::ChunkSize => (400, "Invalid chunk size"),
            Reject::ChunkExtension => (400, "Invalid chunk extension"),
            Reject::ChunkExtensionsTooLarge => (400, "Chunk extensions are too large"),
            Reject::ChunkEnd => (400, "Invalid end of chunk"),
            Reject::Trailer => (400, "Invalid trailer field"),
            Reject::ForbiddenTrailer => (400, "Forbidden trailer field"),
            Reject::TrailersTooLarge => (431, "Error parsing trailers: limit exceeded"),
            Reject::IncompleteBody => (400, "Request body ended early"),
            Reject::ProxyHeader => (400, "Invalid or missing PROXY protocol header"),
            Reject::Forbidden => (403, "Request forbidden"),
            Reject::UnsupportedMethod => (501, "Method is not implemented"),
            Reject::RequestTimeout => (408, "Request was not received in time"),
            Reject::BodyTooLarge => (413, "Request body is too large"),
            Reject::InternalError => (500, ""),
            Reject::ScriptName => {
                (500, "Configuration problem: Request path does not start with SCRIPT_NAME")
            }
            Reject::Unavailable => (503, "Server is not able to take the request"),
            Reject::Overloaded => (503, "Server is overloaded; try again"),
            // Nobody is there to read it; the status is Nginx's.
            Reject::ClientGone => (499, "Client closed the connection"),
            Reject::AppTimeout => (504, "Application did not answer in time"),
            Reject::PlainOnTls => (400, "The plain HTTP request was sent to HTTPS port"),
        }
    }

    /// The reason phrase that RFC 9110 §15 gives to the status.
    pub fn reason(self) -> &'static str {
        match self.status() {
            400 => "Bad Request",
            403 => "Forbidden",
            408 => "Request Timeout",
            413 => "Content Too Large",
            414 => "URI Too Long",
            417 => "Expectation Failed",
            499 => "Client Closed Request",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            504 => "Gateway Timeout",
            505 => "HTTP Version Not Supported",
            _ => "Internal Server Error",
        }
    }

    /// The complete response; `server_date` is the block that `date::ServerDate` makes. The connection closes after it.
    pub fn page(self, server_date: &[u8], out: &mut Vec<u8>) {
        let (status, reason, text) = (self.status(), self.reason(), self.text());
        let page = format!(
            "<html>\n  <head>\n    <title>{reason}</title>\n  </head>\n  <body>\n    <h1><p>{reason}</p></h1>\n    \
             {text}\n  </body>\n</html>\n"
        );
        out.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
        out.extend_from_slice(server_date);
        if matches!(self, Reject::Unavailable | Reject::Overloaded) {
            // RFC 9110 §10.2.3
            out.extend_from_slice(b"Retry-After: 1\r\n");
        }
        let length = page.len();
        out.extend_from_slice(b"Connection: close\r\nContent-Type: text/html\r\n");
        out.extend_from_slice(format!("Content-Length: {length}\r\n\r\n{page}").as_bytes());
    }
}

/// RFC 9110 §9.3.2: the answer to HEAD ends with its head.
pub fn without_body(response: &mut Vec<u8>) {
    if let Some(end) = memchr::memmem::find(response, b"\r\n\r\n") {
        response.truncate(end + 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_gunicorn() {
        let table = [
            (Reject::RequestLine, 400, "Bad Request"),
            (Reject::UriTooLong, 414, "URI Too Long"),
            (Reject::FieldTooLarge, 431, "Request Header Fields Too Large"),
            (Reject::TooManyFields, 431, "Request Header Fields Too Large"),
            (Reject::UnknownExpectation, 417, "Expectation Failed"),
            (Reject::UnknownTransferCoding, 501, "Not Implemented"),
            (Reject::UnsupportedVersion, 505, "HTTP Version Not Supported"),
            (Reject::RequestTimeout, 408, "Request Timeout"),
            (Reject::BodyTooLarge, 413, "Content Too Large"),
            (Reject::InternalError, 500, "Internal Server Error"),
            (Reject::ScriptName, 500, "Internal Server Error"),
            (Reject::Unavailable, 503, "Service Unavailable"),
            (Reject::AppTimeout, 504, "Gateway Timeout"),
            (Reject::Forbidden, 403, "Forbidden"),
            (Reject::UnsupportedMethod, 501, "Not Implemented"),
        ];
        for (reject, status, reason) in table {
            assert_eq!((reject.status(), reject.reason()), (status, reason), "{reject:?}");
        }
    }

    #[test]
    fn page_is_a_framed_response_in_the_shape_of_gunicorn() {
        let mut out = Vec::new();
        Reject::Method.page(b"Server: rgunicorn\r\nDate: D\r\n", &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let expected = "HTTP/1.1 400 Bad Request\r\nServer: rgunicorn\r\nDate: D\r\nConnection: close\r\n\
                        Content-Type: text/html\r\nContent-Length: ";
        assert_eq!(head, format!("{expected}{}", body.len()));
        assert_eq!(
            body,
            "<html>\n  <head>\n    <title>Bad Request</title>\n  </head>\n  <body>\n    \
             <h1><p>Bad Request</p></h1>\n    Invalid Method\n  </body>\n</html>\n"
        );
    }
}
