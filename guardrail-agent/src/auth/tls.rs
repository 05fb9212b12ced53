//! The certificate of the HTTP surface: from files, read again when they change, or made at start.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    },
};

/// The files are looked at this often, when somebody connects.
const LOOK: Duration = Duration::from_secs(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is no good.
    #[error("cannot use {}: {message}; give a PEM file with --tls-cert and its key with --tls-key", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Certificate and key do not fit, or none can be made.
    #[error("no TLS certificate: {0}")]
    Config(#[from] rustls::Error),
    /// No certificate can be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
}

struct Loaded {
    acceptor: TlsAcceptor,
    stamp: Option<[SystemTime; 2]>,
    looked: Instant,
}

/// A certificate that keeps itself current.
pub struct Tls {
    files: Option<Files>,
    loaded: Mutex<Loaded>,
}

fn acceptor(certs: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<TlsAcceptor, TlsError> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certs, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl Files {
    fn stamp(&self) -> io::Result<[SystemTime; 2]> {
        let of = |path: &PathBuf| std::fs::metadata(path)?.modified();
        Ok([of(&self.cert)?, of(&self.key)?])
    }

    fn load(&self) -> Result<TlsAcceptor, TlsError> {
        let bad = |path: &PathBuf, message: String| TlsError::File { path: path.clone(), message };
        let certs: Vec<_> = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect)
            .map_err(|e| bad(&self.cert, e.to_string()))?;
        if certs.is_empty() {
            return Err(bad(&self.cert, "it holds no certificate".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| bad(&self.key, e.to_string()))?;
        acceptor(certs, key)
    }
}

impl Tls {
    /// From PEM files.
    ///
    /// # Errors
    /// If they cannot be read, or do not fit together.
    pub fn from_files(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        let files = Files { cert, key };
        // Before reading: a change during the read is then seen by the next look.
        let stamp = files.stamp().ok();
        let acceptor = files.load()?;
        Ok(Self { files: Some(files), loaded: Mutex::new(Loaded { acceptor, stamp, looked: Instant::now() }) })
    }

    /// Signed by itself, for these names. It keeps listeners on the way out; it proves nothing to
    /// callers.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn self_signed(names: Vec<String>) -> Result<Self, TlsError> {
        let made = rcgen::generate_simple_self_signed(names)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let acceptor = acceptor(vec![made.cert.der().clone()], key)?;
        Ok(Self { files: None, loaded: Mutex::new(Loaded { acceptor, stamp: None, looked: Instant::now() }) })
    }

    /// For the next connection. Files that changed and make no sense are said, and the certificate
    /// before goes on.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files
            && loaded.looked.elapsed() >= LOOK
        {
            loaded.looked = Instant::now();
            let stamp = files.stamp().ok();
            if stamp != loaded.stamp {
                match files.load() {
                    Ok(acceptor) => {
                        tracing::info!("the TLS certificate changed");
                        loaded.acceptor = acceptor;
                        loaded.stamp = stamp;
                    }
                    Err(e) => tracing::warn!("keeping the TLS certificate known before: {e}"),
                }
            }
        }
        loaded.acceptor.clone()
    }
}
