//! Owns: the environ of a request (PEP 3333, "environ Variables"), as gunicorn builds it.
//! Rule: an environ is a copy of a dict that already holds what does not change: a template for the worker's listener,
//! or, for a connection that repeats its fields, the environ of the request before. Field names cost nothing when known.
//! Never: trusts a field; which fields are here, and what a trusted peer may say, was decided by `http` and `proxy`.

use std::net::{IpAddr, SocketAddr};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::ffi::latin1;
use super::names::{Key, Names};
use super::Objects;
use crate::config::WarmUp;
use crate::exchange::Exchange;
use crate::http::{rules, Framing, Reject, StartLine};
use crate::listener::Local;
use crate::proxy::{Scheme, Trust};
use crate::proxy_protocol::Origin;
use crate::tls::Facts;
use crate::transport::Peer;
use crate::version;

/// Why there is no environ for a request.
pub enum Refusal {
    Reject(Reject),
    Raised(PyErr),
}

impl From<PyErr> for Refusal {
    fn from(e: PyErr) -> Refusal {
        Refusal::Raised(e)
    }
}

/// The keys that every request sets.
struct Keys {
    method: Py<PyString>,
    raw_uri: Py<PyString>,
    path: Py<PyString>,
    query: Py<PyString>,
    protocol: Py<PyString>,
    scheme: Py<PyString>,
    script_name: Py<PyString>,
    remote_addr: Py<PyString>,
    remote_port: Py<PyString>,
    input: Py<PyString>,
    early_hints: Py<PyString>,
    socket: Py<PyString>,
    host: Py<PyString>,
    server_name: Py<PyString>,
    server_port: Py<PyString>,
}

/// Values that most requests share.
struct Values {
    get: Py<PyString>,
    empty: Py<PyString>,
    https: Py<PyString>,
    http: Py<PyString>,
    http10: Py<PyString>,
    http11: Py<PyString>,
}

/// One thread's builder.
pub struct Environ {
    trust: Trust,
    /// A template for each listener.
    templates: Vec<Py<PyDict>>,
    unix: Vec<bool>,
    /// SCRIPT_NAME where no field says otherwise.
    mount: Mount,
    names: Names,
    keys: Keys,
    values: Values,
    last_peer: Option<(IpAddr, Py<PyString>)>,
    path: Vec<u8>,
}

/// Where the application is mounted.
enum Mount {
    /// By SCRIPT_NAME in the environment, as in gunicorn: a path outside of it is a mistake.
    Strict(String),
    /// By `root_path`: whoever is in front may have taken it off already. May be empty.
    Lenient(String),
}

impl Mount {
    fn new(root_path: &str) -> Mount {
        match std::env::var("SCRIPT_NAME") {
            Ok(name) if !name.is_empty() => Mount::Strict(name),
            _ => Mount::Lenient(root_path.to_string()),
        }
    }

    fn name(&self) -> &str {
        let (Mount::Strict(name) | Mount::Lenient(name)) = self;
        name
    }

    /// The part of `path` behind `name`, which is this mount's or one that a field has given. None where it has no such
    /// part.
    fn rest<'p>(&self, path: &'p [u8], name: &str) -> Option<&'p [u8]> {
        match self {
            Mount::Lenient(root) if root == name => Some(rules::path_below(path, name.as_bytes())),
            _ => path.strip_prefix(name.as_bytes()),
        }
    }
}

/// Left with a connection: its last request's environ, untouched by the application, and the request line it is for.
struct Memo {
    environ: Py<PyDict>,
    line: Vec<u8>,
}

impl Environ {
    /// `base` holds what is the same for every request of the worker.
    pub fn new(
        py: Python<'_>,
        base: &Bound<'_, PyDict>,
        locals: &[Local],
        trust: Trust,
        root_path: &str,
    ) -> PyResult<Environ> {
        let text = |text: &str| PyString::intern(py, text).unbind();
        let keys = Keys {
            method: text("REQUEST_METHOD"),
            raw_uri: text("RAW_URI"),
            path: text("PATH_INFO"),
            query: text("QUERY_STRING"),
            protocol: text("SERVER_PROTOCOL"),
            scheme: text("wsgi.url_scheme"),
            script_name: text("SCRIPT_NAME"),
            remote_addr: text("REMOTE_ADDR"),
            remote_port: text("REMOTE_PORT"),
            input: text("wsgi.input"),
            early_hints: text("wsgi.early_hints"),
            socket: text("gunicorn.socket"),
            host: text("HTTP_HOST"),
            server_name: text("SERVER_NAME"),
            server_port: text("SERVER_PORT"),
        };
        let values = Values {
            get: text("GET"),
            empty: text(""),
            https: text("https"),
            http: text("http"),
            http10: text("HTTP/1.0"),
            http11: text("HTTP/1.1"),
        };
        let mut made = Environ {
            trust,
            templates: Vec::new(),
            unix: locals.iter().map(|local| matches!(local, Local::Unix(_))).collect(),
            mount: Mount::new(root_path),
            names: Names::new(py),
            keys,
            values,
            last_peer: None,
            path: Vec::new(),
        };
        for local in locals {
            let template = made.template(py, base, local)?;
            made.templates.push(template);
        }
        Ok(made)
    }

    /// Everything that is usually set, so that a copy has its keys in place and only values change.
    fn template(&self, py: Python<'_>, base: &Bound<'_, PyDict>, local: &Local) -> PyResult<Py<PyDict>> {
        let template = PyDict::new(py);
        let (keys, values) = (&self.keys, &self.values);
        template.set_item(&keys.method, &values.get)?;
        template.set_item(&keys.raw_uri, "/")?;
        template.set_item(&keys.path, "/")?;
        template.set_item(&keys.query, &values.empty)?;
        template.set_item(&keys.protocol, &values.http11)?;
        template.set_item(&keys.scheme, &values.http)?;
        template.set_item(&keys.script_name, self.mount.name())?;
        template.set_item(&keys.remote_addr, &values.empty)?;
        if let Local::Tcp(address) = local {
            template.set_item(&keys.remote_port, &values.empty)?;
            template.set_item(&keys.server_name, address.ip().to_string())?;
            template.set_item(&keys.server_port, address.port().to_string())?;
        } else if let Local::Unix(path) = local {
            template.set_item(&keys.server_name, path.to_string_lossy().replace('\0', "@"))?;
            template.set_item(&keys.server_port, &values.empty)?;
        }
        template.update(base.as_mapping())?;
        Ok(template.unbind())
    }

    /// The environ of the exchange's request.
    pub fn build<'py>(
        &mut self,
        py: Python<'py>,
        exchange: &mut Exchange<'_>,
        objects: &Objects,
    ) -> Result<Bound<'py, PyDict>, Refusal> {
        let environ =
            if exchange.is_repeated() { self.repeated(py, exchange)? } else { self.fresh(py, exchange)? };
        environ.set_item(&self.keys.input, &objects.input)?;
        environ.set_item(&self.keys.early_hints, &objects.early_hints)?;
        environ.set_item(&self.keys.socket, &objects.socket)?;
        Ok(environ)
    }

    /// The environ of a request that the server itself makes, on its first listener.
    pub fn of_warm_up<'py>(
        &mut self,
        py: Python<'py>,
        request: &WarmUp,
    ) -> Result<Bound<'py, PyDict>, Refusal> {
        let environ = self.templates[0].bind(py).copy()?;
        let target = PyString::new(py, &request.target);
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        environ.set_item(&self.keys.raw_uri, &target)?;
        environ.set_item(&self.keys.query, query)?;
        environ.set_item(&self.keys.host, &request.host)?;
        environ.set_item("HTTP_USER_AGENT", version::SERVER)?;
        if request.https {
            environ.set_item(&self.keys.scheme, &self.values.https)?;
        }
        match self.unix[0] {
            true => self.set_server_by_host(&environ)?,
            false => environ.set_item(&self.keys.remote_addr, "127.0.0.1")?,
        }
        self.set_path(&environ, path.as_bytes(), &target, path.len() == request.target.len())?;
        Ok(environ)
    }

    /// For a request whose fields are those of the connection's last one.
    fn repeated<'py>(
        &mut self,
        py: Python<'py>,
        exchange: &mut Exchange<'_>,
    ) -> Result<Bound<'py, PyDict>, Refusal> {
        let memo = exchange.memo().take().and_then(|memo| memo.downcast::<Memo>().ok());
        let memo = match memo {
            Some(mut memo) => {
                let line = &exchange.head_octets()[..exchange.head().fields_at];
                if memo.line != line {
                    let start = exchange.head().start;
                    self.set_start_line(memo.environ.bind(py), exchange.head_octets(), &start)?;
                    memo.line.clear();
                    memo.line.extend_from_slice(line);
                }
                memo
            }
            None => {
                let environ = self.fresh(py, exchange)?.unbind();
                Box::new(Memo { environ, line: exchange.head_octets()[..exchange.head().fields_at].to_vec() })
            }
        };
        let environ = memo.environ.bind(py).copy()?;
        *exchange.memo() = Some(memo);
        Ok(environ)
    }

    fn fresh<'py>(
        &mut self,
        py: Python<'py>,
        exchange: &Exchange<'_>,
    ) -> Result<Bound<'py, PyDict>, Refusal> {
        let environ = self.templates[exchange.listener()].bind(py).copy()?;
        self.set_peer(&environ, exchange.client())?;
        if let Some(origin) = exchange.origin() {
            set_origin(&environ, origin)?;
        }
        if let Some(facts) = exchange.tls() {
            environ.set_item(&self.keys.scheme, &self.values.https)?;
            set_tls(&environ, &facts)?;
        }
        self.set_scheme(&environ, exchange)?;
        self.set_fields(&environ, exchange)?;
        self.set_start_line(&environ, exchange.head_octets(), &exchange.head().start)?;
        if self.unix[exchange.listener()] {
            self.set_server_by_host(&environ)?;
        }
        Ok(environ)
    }

    fn set_start_line(
        &mut self,
        environ: &Bound<'_, PyDict>,
        octets: &[u8],
        start: &StartLine,
    ) -> Result<(), Refusal> {
        let py = environ.py();
        let method = start.method.of(octets);
        match method {
            b"GET" => environ.set_item(&self.keys.method, &self.values.get)?,
            _ => environ.set_item(&self.keys.method, latin1(py, method)?)?,
        }
        let protocol = match start.version {
            crate::http::Version::Http10 => &self.values.http10,
            crate::http::Version::Http11 => &self.values.http11,
        };
        environ.set_item(&self.keys.protocol, protocol)?;
        let target = latin1(py, start.target.of(octets))?;
        environ.set_item(&self.keys.raw_uri, &target)?;
        match start.query.is_empty() {
            true => environ.set_item(&self.keys.query, &self.values.empty)?,
            false => environ.set_item(&self.keys.query, latin1(py, start.query.of(octets))?)?,
        }
        self.set_path(environ, start.path.of(octets), &target, start.path == start.target)
    }

    /// PATH_INFO is the path behind SCRIPT_NAME, decoded once.
    fn set_path(
        &mut self,
        environ: &Bound<'_, PyDict>,
        path: &[u8],
        target: &Bound<'_, PyString>,
        path_is_target: bool,
    ) -> Result<(), Refusal> {
        let py = environ.py();
        let script_name = environ.get_item(&self.keys.script_name)?;
        let prefix = match &script_name {
            Some(name) => name.cast::<PyString>().map_err(PyErr::from)?.to_str()?,
            None => "",
        };
        let Some(rest) = self.mount.rest(path, prefix) else {
            return Err(Refusal::Reject(Reject::ScriptName));
        };
        if path_is_target && rest.len() == path.len() && !rest.contains(&b'%') {
            environ.set_item(&self.keys.path, target)?;
            return Ok(());
        }
        self.path.clear();
        rules::decode_path(rest, &mut self.path);
        environ.set_item(&self.keys.path, latin1(py, &self.path)?)?;
        Ok(())
    }

    fn set_peer(&mut self, environ: &Bound<'_, PyDict>, peer: Peer) -> PyResult<()> {
        let Peer::Tcp(address) = peer else {
            return Ok(());
        };
        let py = environ.py();
        let host = self.peer_text(py, address);
        environ.set_item(&self.keys.remote_addr, host)?;
        let (digits, from) = port_digits(address.port());
        environ.set_item(&self.keys.remote_port, latin1(py, &digits[from..])?)
    }

    /// Behind a proxy every connection has the same peer.
    fn peer_text(&mut self, py: Python<'_>, address: SocketAddr) -> Py<PyString> {
        let ip = address.ip();
        match &self.last_peer {
            Some((known, text)) if *known == ip => text.clone_ref(py),
            _ => {
                let text = PyString::new(py, &ip.to_string()).unbind();
                self.last_peer = Some((ip, text.clone_ref(py)));
                text
            }
        }
    }

    fn set_scheme(&self, environ: &Bound<'_, PyDict>, exchange: &Exchange<'_>) -> Result<(), Refusal> {
        if !exchange.is_trusted() {
            return Ok(());
        }
        match self.trust.scheme(&exchange.head().fields, exchange.field_block()) {
            Ok(Some(Scheme::Https)) => Ok(environ.set_item(&self.keys.scheme, &self.values.https)?),
            Ok(Some(Scheme::Http)) => Ok(environ.set_item(&self.keys.scheme, &self.values.http)?),
            Ok(None) => Ok(()),
            Err(reject) => Err(Refusal::Reject(reject)),
        }
    }

    fn set_fields(&mut self, environ: &Bound<'_, PyDict>, exchange: &Exchange<'_>) -> PyResult<()> {
        let py = environ.py();
        let block = exchange.field_block();
        let trusted = exchange.is_trusted();
        let mut script_name: Option<String> = None;
        self.names.start();
        for field in &exchange.head().fields.list {
            let value = latin1(py, field.value.of(block))?;
            let name = field.name.of(block);
            if trusted && is_script_name(name) {
                // Of two neither is right: together they are a mount point that no path is below.
                let before = script_name.map_or(String::new(), |before| before + ",");
                script_name = Some(before + value.to_str()?);
            }
            match self.names.key(py, name) {
                Key::First(key) => environ.set_item(key, value)?,
                Key::Uncertain(key) => add(environ, key.bind(py), value, name)?,
            }
        }
        let authority = exchange.head().start.authority;
        if !authority.is_empty() {
            // RFC 9112 §3.2.2: a server "MUST ignore the received Host header field (if any)" for the absolute-form.
            environ.set_item(&self.keys.host, latin1(py, authority.of(exchange.head_octets()))?)?;
        }
        if let Some(name) = script_name {
            environ.set_item(&self.keys.script_name, name)?;
        }
        match (exchange.head().fields.framing, exchange.chunked_length()) {
            // Most frameworks read CONTENT_LENGTH only (Django, CherryPy), and Bottle takes the chunks apart itself where
            // HTTP_TRANSFER_ENCODING names them.
            (Framing::Chunked, Some(length)) => environ.set_item("CONTENT_LENGTH", length.to_string()),
            // As gunicorn has it.
            (Framing::Chunked, None) => environ.set_item("HTTP_TRANSFER_ENCODING", "chunked"),
            _ => Ok(()),
        }
    }

    /// A unix socket has no name of its own that a URL could be made of; Host has (as gunicorn does).
    fn set_server_by_host(&self, environ: &Bound<'_, PyDict>) -> PyResult<()> {
        let Some(host) = environ.get_item(&self.keys.host)? else {
            return Ok(());
        };
        let host: String = host.extract()?;
        let https = environ.get_item(&self.keys.scheme)?.is_some_and(|s| s.eq("https").unwrap_or(false));
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (host.as_str(), if https { "443" } else { "80" }),
        };
        environ.set_item(&self.keys.server_name, name)?;
        environ.set_item(&self.keys.server_port, port)
    }
}

/// As a proxy spells it. `Script-Name` has the same environ key but is anybody's: proxies pass it on.
fn is_script_name(name: &[u8]) -> bool {
    name.len() == 11 && name.eq_ignore_ascii_case(b"script_name")
}

/// What a PROXY header has said, by gunicorn's names.
fn set_origin(environ: &Bound<'_, PyDict>, origin: &Origin) -> PyResult<()> {
    environ.set_item("PROXY_PROTOCOL", origin.protocol())?;
    environ.set_item("PROXY_ADDR", origin.proxy.ip().to_string())?;
    environ.set_item("PROXY_PORT", origin.proxy.port().to_string())
}

/// PEP 3333: with TLS, "as many of the Apache SSL environment variables as are applicable", by mod_ssl's names.
fn set_tls(environ: &Bound<'_, PyDict>, facts: &Facts) -> PyResult<()> {
    environ.set_item("HTTPS", "on")?;
    environ.set_item("SSL_PROTOCOL", facts.protocol)?;
    environ.set_item("SSL_CIPHER", facts.cipher)?;
    let Some(client) = &facts.client else {
        return environ.set_item("SSL_CLIENT_VERIFY", "NONE");
    };
    environ.set_item("SSL_CLIENT_VERIFY", "SUCCESS")?;
    let text = environ.py().import("ssl")?.call_method1("DER_cert_to_PEM_cert", (client.as_slice(),))?;
    environ.set_item("SSL_CLIENT_CERT", text)
}

/// The port in decimal, and where its first digit is: every new connection needs it, so it is made without memory.
fn port_digits(mut port: u16) -> ([u8; 5], usize) {
    let mut digits = [b'0'; 5];
    let mut from = digits.len() - 1;
    loop {
        digits[from] = b'0' + (port % 10) as u8;
        port /= 10;
        if port == 0 {
            return (digits, from);
        }
        from -= 1;
    }
}

/// RFC 9110 §5.3: repeated fields are one list, in order, here with gunicorn's comma. RFC 6265 §5.4: cookies are joined
/// with "; ".
fn add(
    environ: &Bound<'_, PyDict>,
    key: &Bound<'_, PyString>,
    value: Bound<'_, PyString>,
    name: &[u8],
) -> PyResult<()> {
    let Some(before) = environ.get_item(key)? else {
        return environ.set_item(key, value);
    };
    let glue = if name.eq_ignore_ascii_case(b"cookie") { "; " } else { "," };
    let before: String = before.extract()?;
    environ.set_item(key, format!("{before}{glue}{}", value.to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_decimal() {
        for port in [0, 7, 80, 443, 8000, 65535] {
            let (digits, from) = port_digits(port);
            assert_eq!(digits[from..], *port.to_string().as_bytes());
        }
    }
}
