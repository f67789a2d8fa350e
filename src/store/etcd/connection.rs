//! Which server is talked to, and how.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Settings;
use super::failure::{Asked, Failure};
use crate::store::StoreError;

/// Certificates that a server's is checked against when no other are named.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The server in use. It is left for the next one when it fails.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) settings: Settings,
    current: Mutex<Current>,
}

struct Current {
    index: usize,
    client: Option<Client>,
    /// Counts the clients, so that only who saw the present one fail takes it away.
    number: u64,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("index", &self.index).field("connected", &self.client.is_some()).finish()
    }
}

/// A client, and who it talks to.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) client: Client,
    index: usize,
    number: u64,
}

impl Connection {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, current: Mutex::new(Current { index: 0, client: None, number: 0 }) }
    }

    /// How long one server is waited for where nobody asks the others at once.
    pub(super) fn share(&self) -> Duration {
        self.settings.timeout / self.settings.endpoints.len().max(1) as u32
    }

    pub(super) fn asked(&self, index: usize, action: &'static str) -> Asked<'_> {
        Asked {
            endpoint: self.settings.endpoints.get(index).map_or("", String::as_str),
            action,
            username: self.settings.user.as_ref().map_or("", |(name, _)| name),
            prefix: &self.settings.prefix,
        }
    }

    pub(super) fn asked_of(&self, server: &Server, action: &'static str) -> Asked<'_> {
        self.asked(server.index, action)
    }

    /// Asks a server, and the others if it fails. What may have been done is asked again only if it `repeats`: if doing
    /// it twice is doing it once.
    pub(super) async fn call<T, F, A>(&self, action: &'static str, repeats: bool, ask: F) -> Result<T, Failure>
    where
        F: Fn(Client) -> A,
        A: Future<Output = Result<T, Error>> + Send,
    {
        let end = Instant::now() + self.settings.timeout;
        let mut attempts = self.settings.endpoints.len();
        let mut authenticated = false;
        loop {
            // A server that is silent leaves time for the others.
            let share = end.saturating_duration_since(Instant::now()) / attempts.max(1) as u32;
            attempts = attempts.saturating_sub(1);
            let failure = match self.server(action, share, end).await {
                Err(failure) => failure,
                Ok(server) => {
                    let asked = self.asked_of(&server, action);
                    let left = end.saturating_duration_since(Instant::now());
                    let patience = if repeats { share.min(left) } else { left };
                    let failure = match timeout(patience, ask(server.client.clone())).await {
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err(error)) => asked.failure(&error),
                        Err(_) => asked.timeout(patience),
                    };
                    if failure.stale && !authenticated {
                        authenticated = true;
                        attempts += 1;
                        self.leave(&server, false).await;
                        continue;
                    }
                    if failure.elsewhere || matches!(failure.error, StoreError::Credentials { .. }) {
                        self.leave(&server, failure.elsewhere).await;
                    }
                    failure
                }
            };
            if attempts == 0 || !failure.elsewhere || (failure.maybe_done && !repeats) || Instant::now() >= end {
                return Err(failure);
            }
        }
    }

    /// The present server, connected to and logged in, which may take `patience` but not beyond `end`. Files are read
    /// anew for each connection, so they may be replaced.
    pub(super) async fn server(
        &self,
        action: &'static str,
        patience: Duration,
        end: Instant,
    ) -> Result<Server, Failure> {
        let begun = Instant::now();
        let mut current = self.current.lock().await;
        let (index, now) = (current.index, Instant::now());
        let asked = self.asked(index, action);
        if now >= end {
            // Others took the time to connect, to the server before perhaps: of this one it tells nothing.
            return Err(Failure { maybe_done: false, ..asked.timeout(now - begun) });
        }
        if let Some(client) = &current.client {
            return Ok(Server { client: client.clone(), index, number: current.number });
        }
        let patience = patience.min(end - now);
        let endpoint = &self.settings.endpoints[index];
        let options = self.settings.options(endpoint).map_err(Failure::certain)?;
        let failure = match timeout(patience, Client::connect([endpoint], Some(options))).await {
            Ok(Ok(client)) => {
                current.number += 1;
                current.client = Some(client.clone());
                return Ok(Server { client, index, number: current.number });
            }
            Ok(Err(error)) => asked.failure(&error),
            Err(_) => asked.timeout(patience),
        };
        if failure.elsewhere {
            current.index = (index + 1) % self.settings.endpoints.len();
        }
        Err(Failure { maybe_done: false, ..failure })
    }

    /// Gives up a connection, and with `elsewhere` also its server, unless somebody did so already.
    pub(super) async fn leave(&self, server: &Server, elsewhere: bool) {
        let mut current = self.current.lock().await;
        if current.number == server.number && current.client.take().is_some() && elsewhere {
            current.index = (server.index + 1) % self.settings.endpoints.len();
        }
    }
}

impl Settings {
    fn options(&self, endpoint: &str) -> Result<ConnectOptions, StoreError> {
        // Without a leader a server is of no use, though it would go on watching and wait for better times.
        let mut options = ConnectOptions::new().with_require_leader(true).with_connect_timeout(self.timeout);
        if endpoint.starts_with("https://") {
            options = options.with_tls(self.tls()?);
        }
        if let Some((name, path)) = &self.user {
            let password = String::from_utf8(read("store.password_file", path)?)
                .map_err(|_| setup("store.password_file", path, "it is not text"))?;
            options = options.with_user(name, password.trim_end_matches(['\r', '\n'])).with_auto_token_refresh(true);
        }
        Ok(options)
    }

    fn tls(&self) -> Result<TlsOptions, StoreError> {
        let ca = self.ca.as_deref().unwrap_or(Path::new(SYSTEM_CA));
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem("store.ca", ca)?));
        if let Some((cert, key)) = &self.identity {
            let (cert, key) = (read_pem("store.cert", cert)?, read_pem("store.key", key)?);
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Ok(tls)
    }
}

fn setup(key: &'static str, path: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Setup { key, reason: format!("{}: {reason}", path.display()) }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| setup(key, path, error))
}

fn read_pem(key: &'static str, path: &Path) -> Result<Vec<u8>, StoreError> {
    let bytes = read(key, path)?;
    let is_pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
    if is_pem { Ok(bytes) } else { Err(setup(key, path, "no PEM in it")) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Servers that take connections and say nothing.
    fn silent(count: usize) -> (Vec<TcpListener>, Vec<String>) {
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let endpoints = listeners.iter().map(url).collect();
        (listeners, endpoints)
    }

    fn connection(endpoints: &[String], password: Option<&Path>) -> Connection {
        Connection::new(Settings {
            endpoints: endpoints.to_vec(),
            user: password.map(|path| ("tapir".to_owned(), path.to_owned())),
            timeout: Duration::from_secs(6),
            ..Settings::default()
        })
    }

    fn timed_out(endpoint: &str, seconds: u64) -> StoreError {
        StoreError::Timeout { endpoint: endpoint.to_owned(), action: "list", seconds }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_another_leaves_no_server_untried() {
        let password = tempfile::NamedTempFile::new().unwrap();
        let (_listeners, endpoints) = silent(2);
        let connection = connection(&endpoints, Some(password.path()));
        let patience = Duration::from_secs(3);
        let end = Instant::now() + patience;
        let ask = || connection.server("list", patience, end);
        let (first, second) = tokio::join!(ask(), ask());
        assert_eq!(first.err().map(|failure| failure.error), Some(timed_out(&endpoints[0], 3)));
        assert_eq!(second.err().map(|failure| failure.error), Some(timed_out(&endpoints[1], 3)));
        assert_eq!(connection.current.lock().await.index, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_said_to_be_silent_for_as_long_as_it_was_waited_for() {
        let password = tempfile::NamedTempFile::new().unwrap();
        let (_listeners, endpoints) = silent(3);
        for password in [None, Some(password.path())] {
            let connection = connection(&endpoints, password);
            let failure = connection.call("list", true, |_| std::future::pending::<Result<(), Error>>()).await;
            assert_eq!(failure.unwrap_err().error, timed_out(&endpoints[2], 2), "{password:?}");
        }
    }
}
