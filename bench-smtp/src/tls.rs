//! The TLS of the sink: STARTTLS with a self-signed certificate that is made at each start.
//!
//! The certificate has a key for ECDSA (P-256), so that a handshake costs the sink a fraction of a millisecond. No
//! session is resumed: each delivery makes a handshake of its own, as at a server that sees a client for the first time.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::error::{Error, Result};

/// Whether the sink offers STARTTLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// It does not know the command.
    Unknown,
    /// It offers it in its answer to EHLO.
    Offered,
}

/// The certificate and the settings of all sessions of a sink.
#[derive(Debug, Clone)]
pub(crate) struct TlsSettings(Arc<ServerConfig>);

impl TlsSettings {
    /// Makes a certificate for `name`.
    pub(crate) fn new(name: &str) -> Result<TlsSettings> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])
            .map_err(Error::doing("make a certificate"))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)
            })
            .map_err(Error::doing("set up TLS"))?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(TlsSettings(Arc::new(config)))
    }

    /// The TLS of a connection whose client has said STARTTLS.
    pub(crate) fn accept(&self) -> Result<TlsSession> {
        let session =
            ServerConnection::new(Arc::clone(&self.0)).map_err(Error::doing("begin TLS"))?;
        Ok(TlsSession(Box::new(session)))
    }
}

/// The TLS of one connection.
#[derive(Debug)]
pub(crate) struct TlsSession(Box<ServerConnection>);

impl TlsSession {
    /// Reads once from `stream` and appends what it has decrypted to `input`. Returns whether the client is still there.
    pub(crate) fn read(&mut self, stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<bool> {
        if self.0.read_tls(stream)? == 0 {
            return Ok(false);
        }
        let state = self.0.process_new_packets().map_err(io::Error::other);
        // An answer of the handshake, or an alert that says what was wrong.
        self.flush(stream)?;
        let state = state?;
        let (len, closed) = (state.plaintext_bytes_to_read(), state.peer_has_closed());
        let start = input.len();
        input.resize(start + len, 0);
        self.0.reader().read_exact(&mut input[start..])?;
        Ok(!closed)
    }

    /// Encrypts and writes `text`.
    pub(crate) fn write(&mut self, stream: &mut TcpStream, text: &[u8]) -> io::Result<()> {
        self.0.writer().write_all(text)?;
        self.flush(stream)
    }

    /// Says that no more will come.
    pub(crate) fn close(&mut self, stream: &mut TcpStream) {
        self.0.send_close_notify();
        // The client may have gone.
        let _ = self.flush(stream);
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(stream)?;
        }
        Ok(())
    }
}
