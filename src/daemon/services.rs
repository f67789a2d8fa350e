//! Services: the folder that they are in, the host's addresses, and what load balancers ask.
//!
//! Once a second a job looks at folder and addresses; what it finds is taken in by the loop, which reads no file itself.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tapir_cni::error::code;
use tapir_cni::protocol::Refusal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Daemon;
use super::attachment::Outcome;
use super::verbs::refusal;
use crate::api::health_check::{self, Answer};
use crate::api::services::part;
use crate::api::types;
use crate::config::{self, Config};
use crate::control::Event;
use crate::control::service::{HealthCheck, Settings};
use crate::host::{HostError, addresses};
use crate::source::folder::{Changes, Folder};

/// The most ports at which load balancers are answered.
const MAX_HEALTH_CHECKS: usize = 1_024;
/// What goes before the problems that service files and health checks make.
pub(super) const FILES: &str = "services";
pub(super) const HEALTH_CHECKS: &str = "health-checks";

/// What the loop has of services.
pub(super) struct Services {
    /// None while a job looks at it.
    folder: Option<Folder>,
    path: PathBuf,
    /// Counts up when the folder is another; what a job finds of an earlier one is no news.
    generation: u32,
    /// What files say is in force.
    files: BTreeMap<PathBuf, Arc<str>>,
    /// Why files are not taken.
    refused: BTreeMap<PathBuf, String>,
    /// Why folder or addresses can't be looked at.
    failures: Vec<String>,
    /// Of which services problems were last told, and health checks answered.
    epoch: Option<u32>,
    /// What was then wrong.
    told: Vec<String>,
    servers: BTreeMap<u16, Server>,
}

/// What a job has found.
#[derive(Debug)]
pub(super) struct Found {
    folder: Folder,
    generation: u32,
    changes: Changes,
    host: Result<Vec<IpAddr>, HostError>,
}

/// Answers load balancers at one port.
struct Server {
    answers: watch::Sender<Answer>,
    task: JoinHandle<io::Result<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Services {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: Some(Folder::new(folder)),
            path: folder.into(),
            generation: 0,
            files: BTreeMap::new(),
            refused: BTreeMap::new(),
            failures: Vec::new(),
            epoch: None,
            told: Vec::new(),
            servers: BTreeMap::new(),
        }
    }
}

/// Looks at folder and addresses.
pub(super) fn look(mut folder: Folder, generation: u32) -> Found {
    let changes = folder.look();
    Found { folder, generation, changes, host: addresses::all() }
}

/// How services are forwarded.
pub(super) fn settings(config: &Config) -> Settings {
    let network = &config.network;
    Settings {
        native: network.services == config::Services::Native,
        cidrs: network.service_cidrs.clone(),
        node: config.node.name.clone(),
        zone: config.node.zone().into(),
        reset: network.service_reset,
        node_port_addresses: network.node_port_addresses.clone(),
    }
}

impl Daemon {
    /// Once a second: has a job look, unless one does.
    pub(super) fn tend_services(&mut self) {
        if let Some(folder) = self.services.folder.take() {
            let generation = self.services.generation;
            self.jobs.spawn_blocking(move || Outcome::Looked(Box::new(look(folder, generation))));
        }
    }

    /// Takes in what a job has found.
    pub(super) fn looked(&mut self, found: Found) {
        let Found { folder, generation, changes, host } = found;
        self.services.failures.clear();
        match host {
            Ok(host) => self.apply(Event::HostAddresses(host)),
            Err(error) => self.services.failures.push(error.to_string()),
        }
        if generation == self.services.generation {
            self.take_files(changes);
            self.services.folder = Some(folder);
        }
        self.publish();
        self.tell_services();
    }

    fn take_files(&mut self, changes: Changes) {
        let Changes { read, gone, failure } = changes;
        if !(read.is_empty() && gone.is_empty()) {
            self.services.epoch = None;
        }
        self.services.failures.extend(failure);
        gone.iter().for_each(|path| self.forget_file(path));
        for (path, result) in read {
            match result {
                Ok(objects) => {
                    tracing::info!(path = %path.display(), objects = objects.len(), "services were read");
                    let source: Arc<str> = path.display().to_string().into();
                    self.apply(Event::Services { source: source.clone(), objects });
                    self.services.refused.remove(&path);
                    self.services.files.insert(path, source);
                }
                Err(error) => drop(self.services.refused.insert(path, error.to_string())),
            }
        }
    }

    fn forget_file(&mut self, path: &Path) {
        self.services.refused.remove(path);
        if let Some(source) = self.services.files.remove(path) {
            self.apply(Event::Services { source, objects: Vec::new() });
        }
    }

    /// Takes the config as it is by now.
    pub(super) fn reconfigure_services(&mut self) {
        self.apply(Event::ServiceSettings(settings(&self.config)));
        let path = self.config.network.services_dir.clone();
        if self.services.path != path {
            let known = self.services.files.keys().chain(self.services.refused.keys());
            known.cloned().collect::<Vec<_>>().iter().for_each(|path| self.forget_file(path));
            self.services.folder = Some(Folder::new(&path));
            self.services.path = path;
            self.services.generation += 1;
        }
    }

    /// Tells what is wrong, and load balancers what they ask, when services have changed.
    fn tell_services(&mut self) {
        let epoch = self.publisher.snapshot().services.epoch;
        if self.services.epoch.replace(epoch) != Some(epoch) {
            self.serve_health_checks();
            self.services.told = self.desired.services().problems();
        }
        let refused = self.services.refused.values();
        let all = self.services.failures.iter().chain(refused).chain(&self.services.told);
        let problems = all.cloned().collect();
        self.note(FILES, problems);
        let healthy = self.links.host && self.links.tunnel;
        for server in self.services.servers.values() {
            server.answers.send_if_modified(|answer| std::mem::replace(&mut answer.healthy, healthy) != healthy);
        }
    }

    /// Opens and closes the ports at which load balancers ask.
    fn serve_health_checks(&mut self) {
        let mut problems = Vec::new();
        let mut servers = std::mem::take(&mut self.services.servers);
        let healthy = self.links.host && self.links.tunnel;
        for HealthCheck { port, name, local } in self.desired.services().health_checks() {
            if self.services.servers.contains_key(&port) {
                problems.push(format!("Service {name}: its healthCheckNodePort {port} is another service's"));
                continue;
            }
            if self.services.servers.len() == MAX_HEALTH_CHECKS {
                problems.push(format!("more than {MAX_HEALTH_CHECKS} services have a healthCheckNodePort"));
                break;
            }
            let (namespace, own) = (name.namespace.to_string(), name.name.to_string());
            let answer = Answer { namespace, name: own, local, healthy };
            let server = match servers.remove(&port) {
                Some(server) => {
                    server.answers.send_replace(answer);
                    Ok(server)
                }
                None => open(port, answer),
            };
            match server {
                Ok(server) => drop(self.services.servers.insert(port, server)),
                Err(error) => {
                    // Tried again when anybody looks next.
                    self.services.epoch = None;
                    problems.push(format!("Service {name}: can't listen on its healthCheckNodePort {port}: {error}"));
                }
            }
        }
        self.note(HEALTH_CHECKS, problems);
    }

    pub(super) fn services_after(&mut self, after: Option<&str>, limit: u32) -> Result<types::Services, Refusal> {
        self.publish();
        let part = part(self.desired.services(), after, limit as usize);
        part.ok_or_else(|| refusal(code::DECODE_FAILURE, "`after` is the `next` of no answer", ""))
    }
}

/// Both families, where the host has both.
fn open(port: u16, answer: Answer) -> io::Result<Server> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    let listener = listener.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (answers, told) = watch::channel(answer);
    Ok(Server { answers, task: tokio::spawn(health_check::serve(listener, told)) })
}
