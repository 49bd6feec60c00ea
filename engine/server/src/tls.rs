//! HTTPS: a certificate and its key from two PEM files, put in place of the old pair when the files change.
//!
//! A connection keeps the pair it began with. A new pair that can't be used changes nothing: the old one goes on serving.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{Error as RustlsError, InconsistentKeys, ServerConfig, crypto};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Why a pair of files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read the {what} `{}`: {cause}", path.display())]
    Unreadable {
        /// `certificate` or `key`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Not what was expected in it.
    #[error("`{}` holds {found}, expected {expected}", path.display())]
    Content {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// Each is good, but not together.
    #[error("the key in `{}` does not belong to the first certificate in `{}`", key.display(), certificate.display())]
    Mismatch {
        /// File with the certificate.
        certificate: PathBuf,
        /// File with the key.
        key: PathBuf,
    },
    /// The library refuses the pair.
    #[error("the certificate in `{}` can't be used: {cause}", certificate.display())]
    Refused {
        /// File with the certificate.
        certificate: PathBuf,
        /// Its words.
        cause: RustlsError,
    },
}

impl TlsError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            TlsError::Unreadable { .. } => {
                "the user that runs the server must be able to read both files".to_owned()
            }
            TlsError::Content { expected, .. } if expected.contains("key") => {
                "a key without a password begins with `-----BEGIN PRIVATE KEY-----`; `openssl pkey -in KEY -out PLAIN` takes the password off"
                    .to_owned()
            }
            TlsError::Content { .. } => {
                "the server's own certificate comes first, then those that sign it, each between `-----BEGIN CERTIFICATE-----` and `-----END CERTIFICATE-----`"
                    .to_owned()
            }
            TlsError::Mismatch { .. } => {
                "`--ssl-cert-file` needs the server's own certificate first, and `--ssl-key-file` the key it was made with"
                    .to_owned()
            }
            TlsError::Refused { .. } => return None,
        })
    }
}

/// A certificate with its key, and the files they come from.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    /// Of the files when they were last read.
    seen: Mutex<Stamps>,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// When they hold no pair that can be used.
    pub fn load(certificate: &Path, key: &Path) -> Result<Arc<Tls>, TlsError> {
        let provider = Arc::new(crypto::ring::default_provider());
        let seen = stamps(certificate, key);
        let pair = read_pair(certificate, key, &provider)?;
        let current = Arc::new(Current(RwLock::new(Arc::new(pair))));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| TlsError::Refused {
                certificate: certificate.to_owned(),
                cause,
            })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(Tls {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            config: Arc::new(config),
            current,
            seen: Mutex::new(seen),
        }))
    }

    /// Reads both files again, for connections that begin from now on.
    ///
    /// # Errors
    /// When they hold no pair that can be used; the old one stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) =
            stamps(&self.certificate, &self.key);
        let pair = read_pair(&self.certificate, &self.key, self.config.crypto_provider())?;
        let mut current = self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(pair);
        Ok(())
    }

    /// Follows the files for ever. They are read once they have stayed the same between two looks, because a pair is
    /// written in two steps.
    pub async fn follow(self: Arc<Self>) {
        let mut last = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let tls = Arc::clone(&self);
            let before = last.take();
            let look = tokio::task::spawn_blocking(move || tls.look(before));
            last = look.await.unwrap_or_default();
        }
    }

    /// One look: `before` is what the last one found changed.
    fn look(&self, before: Option<Stamps>) -> Option<Stamps> {
        let now = stamps(&self.certificate, &self.key);
        if now == *self.seen.lock().unwrap_or_else(PoisonError::into_inner) {
            return None;
        }
        if before.as_ref() != Some(&now) {
            return Some(now);
        }
        self.reload_and_say();
        None
    }

    /// [`Tls::reload`], told in the log.
    pub fn reload_and_say(&self) {
        let at = self.certificate.display();
        match self.reload() {
            Ok(()) => tracing::info!("certificate `{at}` loaded again"),
            Err(error) => {
                tracing::error!("the old certificate stays in use: {error}");
            }
        }
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

/// The pair that new connections get.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

/// What tells one state of a file from another; `None` while it can't be seen.
type Stamp = Option<(u64, u64, u64, SystemTime)>;
type Stamps = [Stamp; 2];

fn stamps(certificate: &Path, key: &Path) -> Stamps {
    [certificate, key].map(|path| {
        let file = fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.len(), file.modified().ok()?))
    })
}

fn read_pair(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = read_chain(certificate)?;
    let private = read_key(key)?;
    CertifiedKey::from_der(chain, private, provider).map_err(|cause| match cause {
        RustlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        RustlsError::General(why) => TlsError::Content {
            path: key.to_owned(),
            found: format!("a key that can't be read ({why})"),
            expected: "a private key, RSA, ECDSA or Ed25519",
        },
        cause => TlsError::Refused {
            certificate: certificate.to_owned(),
            cause,
        },
    })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|cause| TlsError::Unreadable {
        what,
        path: path.to_owned(),
        cause,
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read("certificate", path)?;
    let wrong = |found: String| TlsError::Content {
        path: path.to_owned(),
        found,
        expected: "certificates in PEM",
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(wrong(described(&bytes))),
        Err(error) => Err(wrong(broken_pem(&error))),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read("key", path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        found: match error {
            pem::Error::NoItemsFound => described(&bytes),
            error => broken_pem(&error),
        },
        expected: "a private key in PEM",
    })
}

/// What a file without the wanted part is; never quotes it, since it may be a key.
fn described(bytes: &[u8]) -> String {
    let holds = |text: &str| bytes.windows(text.len()).any(|it| it == text.as_bytes());
    if holds("BEGIN ENCRYPTED PRIVATE KEY") || holds("Proc-Type: 4,ENCRYPTED") {
        "a key behind a password"
    } else if holds("PRIVATE KEY-----") {
        "a key"
    } else if holds("-----BEGIN CERTIFICATE-----") {
        "a certificate"
    } else if bytes.first() == Some(&0x30) {
        "DER"
    } else if bytes.is_empty() {
        "nothing"
    } else {
        "no PEM"
    }
    .to_owned()
}

fn broken_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "PEM without its `-----END` line".to_owned(),
        pem::Error::Base64Decode(_) => "PEM that is no base64".to_owned(),
        _ => "broken PEM".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PEM of a fresh certificate and its key.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new(certificate: &str, key: &str) -> Files {
            let files = Files {
                dir: tempfile::tempdir().unwrap(),
            };
            files.write(certificate, key);
            files
        }

        fn write(&self, certificate: &str, key: &str) {
            fs::write(self.certificate(), certificate).unwrap();
            fs::write(self.key(), key).unwrap();
        }

        fn certificate(&self) -> PathBuf {
            self.dir.path().join("cert.pem")
        }

        fn key(&self) -> PathBuf {
            self.dir.path().join("key.pem")
        }

        fn load(&self) -> Result<Arc<Tls>, TlsError> {
            Tls::load(&self.certificate(), &self.key())
        }
    }

    fn served(tls: &Tls) -> Vec<u8> {
        tls.current.0.read().unwrap().cert[0].to_vec()
    }

    #[test]
    fn wrong_files_are_named_with_what_is_in_them() {
        let (certificate, key) = pair();
        let (_, other) = pair();
        let locked =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let cut = &certificate[..certificate.len() - 30];
        for (certificate, key, expected) in [
            (
                &*certificate,
                &*other,
                "does not belong to the first certificate",
            ),
            (
                &*key,
                &*key,
                "cert.pem` holds a key, expected certificates in PEM",
            ),
            (
                &*certificate,
                &*certificate,
                "key.pem` holds a certificate, expected a private key",
            ),
            (
                &*certificate,
                locked,
                "key.pem` holds a key behind a password",
            ),
            (&*certificate, "", "key.pem` holds nothing"),
            ("hello", &*key, "cert.pem` holds no PEM"),
            ("0\u{1}", &*key, "cert.pem` holds DER"),
            (
                cut,
                &*key,
                "cert.pem` holds PEM without its `-----END` line",
            ),
        ] {
            let error = Files::new(certificate, key).load().unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected), "{message} / {expected}");
            assert!(error.hint().is_some(), "{message}");
        }
        let error = Tls::load(Path::new("/no/such"), Path::new("/no/such")).unwrap_err();
        assert!(
            error.to_string().contains("cannot read the certificate"),
            "{error}"
        );
    }

    #[test]
    fn a_new_pair_is_taken_once_it_is_whole_and_a_bad_one_never() {
        let (certificate, key) = pair();
        let files = Files::new(&certificate, &key);
        let tls = files.load().unwrap();
        let first = served(&tls);
        assert_eq!(tls.look(None), None, "nothing has changed");

        let (certificate, key) = pair();
        files.write(&certificate, "not yet ");
        let changed = tls.look(None);
        assert!(changed.is_some());
        files.write(&certificate, &key);
        let settled = tls.look(changed);
        assert!(settled.is_some(), "still changing");
        assert_eq!(served(&tls), first);
        assert_eq!(tls.look(settled), None);
        let second = served(&tls);
        assert_ne!(second, first);

        files.write("broken", &key);
        let changed = tls.look(None);
        assert_eq!(tls.look(changed), None);
        assert_eq!(served(&tls), second);
        assert_eq!(tls.look(None), None, "the same bad pair is not read twice");
        assert!(tls.reload().is_err());
    }
}
