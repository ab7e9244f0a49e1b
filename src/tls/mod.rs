//! Owns: what TLS is spoken with: the operator's files and choices become a `Context`, from which each connection's
//! `Session` is made.
//! Rule: a context is made by the arbiter, once for a generation, before any of its workers exists: what is wrong with the
//! files stops the start or the reload. All workers of all generations take each other's session tickets.
//! Never: knows HTTP or the loop; no OpenSSL, so no `ssl.SSLContext` either.

pub mod ciphers;
mod session;
pub mod tickets;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ring::digest;
use rustls::crypto::{ring as provided, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

pub use self::session::{Facts, Failure, Session};
use self::tickets::{TicketKeys, Ticketer};
use crate::config::{Authorities, ClientCertificate, Tls};
use crate::error::Error;

/// What the connections of a generation have in common.
#[derive(Clone)]
pub struct Context(Arc<ServerConfig>);

impl Context {
    /// Errors: a file that cannot be used, named with its option.
    pub fn load(tls: &Tls, keys: &Arc<TicketKeys>) -> Result<Context, Error> {
        let chain = certificates(&tls.certfile, "certificate", "--certfile")?;
        let keyfile = tls.keyfile.as_ref().unwrap_or(&tls.certfile);
        let key = private_key(keyfile)?;
        let provider = provider(tls)?;
        let authorities = authorities(tls)?;
        let policy = policy(tls, &authorities);
        let verifier = verifier(tls, authorities, &provider)?;
        let mut versions: Vec<&SupportedProtocolVersion> = Vec::new();
        versions.extend(tls.tls13.then_some(&TLS13));
        versions.extend((tls.tls12 && ciphers::has_tls12(&provider.cipher_suites)).then_some(&TLS12));
        if versions.is_empty() {
            return Err(Error::Other(
                "TLS: no version is left to speak, there are 1.2 and 1.3 (ssl_context)".into(),
            ));
        }
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|e| Error::Other(format!("TLS: {e} (--ciphers)")))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|e| unusable(tls, keyfile, e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ignore_client_order = tls.ciphers.is_some();
        // Sessions are resumed by tickets: their state is with the client, so any worker can take one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(Ticketer::new(keys.clone(), policy));
        Ok(Context(Arc::new(config)))
    }

    /// For a connection that was just accepted.
    pub fn session(&self) -> io::Result<Session> {
        ServerConnection::new(self.0.clone()).map(Session::new).map_err(io::Error::other)
    }
}

/// What a client's certificate was judged by: it is in the session's state, and is not judged again when that is resumed.
fn policy(tls: &Tls, authorities: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(format!("{:?}", tls.client).as_bytes());
    for authority in authorities {
        hash.update(&(authority.len() as u64).to_le_bytes());
        hash.update(authority);
    }
    hash.finish().as_ref().to_vec()
}

fn provider(tls: &Tls) -> Result<Arc<CryptoProvider>, Error> {
    let mut provider = provided::default_provider();
    if let Some(wanted) = &tls.ciphers {
        provider.cipher_suites = ciphers::choose(wanted, &provider.cipher_suites)
            .map_err(|why| Error::Other(format!("ciphers: {why} (--ciphers)")))?;
    }
    Ok(Arc::new(provider))
}

/// From whom client certificates may come; nobody where they are not asked for.
fn authorities(tls: &Tls) -> Result<Vec<CertificateDer<'static>>, Error> {
    match &tls.authorities {
        _ if tls.client == ClientCertificate::Ignored => Ok(Vec::new()),
        Some(Authorities::File(path)) => certificates(path, "certificates", "--ca-certs"),
        Some(Authorities::Given(list)) if !list.is_empty() => {
            Ok(list.iter().map(|octets| octets.clone().into()).collect())
        }
        _ => Err(Error::Other(
            "cert_reqs: no authority is named that client certificates come from (--ca-certs)".into(),
        )),
    }
}

fn verifier(
    tls: &Tls,
    authorities: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    if tls.client == ClientCertificate::Ignored {
        return Ok(Arc::new(NoClientAuth));
    }
    let place = match &tls.authorities {
        Some(Authorities::File(path)) => format!("{}: ", path.display()),
        _ => String::new(),
    };
    let bad = |e: &dyn std::fmt::Display| {
        Error::Other(format!("{place}an authority in it cannot be used: {e} (--ca-certs)"))
    };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|e| bad(&e))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let builder = match tls.client {
        ClientCertificate::Optional => builder.allow_unauthenticated(),
        _ => builder,
    };
    builder.build().map_err(|e| bad(&e))
}

fn read(path: &Path, what: &str, option: &str) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::system(&format!("{what} {}", path.display()), &e, option))
}

fn certificates(path: &Path, what: &str, option: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let octets = read(path, what, option)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&octets).collect();
    match found {
        Ok(list) if !list.is_empty() => Ok(list),
        _ => Err(Error::Other(format!("{} has no certificate in PEM form in it ({option})", path.display()))),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let octets = read(path, "key", "--keyfile")?;
    let has = |mark: &[u8]| memchr::memmem::find(&octets, mark).is_some();
    // PKCS #8, and the older form of OpenSSL's.
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(Error::Other(format!(
            "the key in {} is encrypted; decrypt it, as nobody is there to be asked for its passphrase (--keyfile)",
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_slice(&octets).map_err(|_| {
        Error::Other(format!("{} has no private key in PEM form in it (--keyfile)", path.display()))
    })
}

fn unusable(tls: &Tls, keyfile: &Path, e: rustls::Error) -> Error {
    let (certfile, keyfile) = (tls.certfile.display(), keyfile.display());
    Error::Other(match e {
        rustls::Error::InconsistentKeys(_) => {
            format!("the key in {keyfile} is not that of the certificate in {certfile} (--keyfile)")
        }
        rustls::Error::InvalidCertificate(_) => {
            format!("the certificate in {certfile} cannot be used: {e} (--certfile)")
        }
        _ => format!("the key in {keyfile} cannot be used: {e} (--keyfile)"),
    })
}
