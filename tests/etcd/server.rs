//! etcd clusters on loopback, each with ports and a folder of its own. They end when dropped.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// As long is waited for a cluster to answer.
const START: Duration = Duration::from_secs(60);

/// What kind of cluster.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub members: usize,
    /// Clients come with certificates, see [`Certificates`].
    pub tls: bool,
    /// More arguments for each member.
    pub arguments: &'static [&'static str],
}

impl Default for Options {
    fn default() -> Self {
        Self { members: 1, tls: false, arguments: &[] }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    options: Options,
    members: Vec<Member>,
    folder: TempDir,
    /// With `tls`.
    pub certificates: Option<Certificates>,
    /// `USER:PASSWORD` for [`Cluster::etcdctl`].
    pub user: Option<&'static str>,
}

#[derive(Debug)]
struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts one, and waits until it answers; none when there is no etcd here, which is said.
    pub fn start(options: Options) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: no etcd here");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        // Held until all are known, so that they differ.
        let held: Vec<_> = (0..2 * options.members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<_> = held.iter().map(|port| port.local_addr().unwrap().port()).collect();
        drop(held);
        let members = ports.chunks(2).map(|ports| Member { client: ports[0], peer: ports[1], process: None }).collect();
        let certificates = options.tls.then(|| Certificates::make(folder.path(), "ca"));
        let mut cluster = Self { options, members, folder, certificates, user: None };
        for index in 0..options.members {
            cluster.start_member(index);
        }
        cluster.wait();
        Some(cluster)
    }

    /// The members' URLs.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    /// A member's URL.
    pub fn endpoint(&self, index: usize) -> String {
        let scheme = if self.options.tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[index].client)
    }

    /// Starts a member, for the first time or again.
    pub fn start_member(&mut self, index: usize) {
        let name = |index: usize| format!("m{index}");
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.peer);
        let all: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(index, member)| format!("{}={}", name(index), peer(member)))
            .collect();
        let (client, own) = (self.endpoint(index), peer(&self.members[index]));
        let data = self.data(index);
        let state = if data.exists() { "existing" } else { "new" };
        let log =
            File::options().create(true).append(true).open(self.folder.path().join(format!("log{index}"))).unwrap();
        let mut command = Command::new("etcd");
        command.arg("--name").arg(name(index)).arg("--data-dir").arg(&data);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &own, "--initial-advertise-peer-urls", &own]);
        command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", state]);
        command.args(["--heartbeat-interval", "100", "--election-timeout", "1000", "--logger", "zap"]);
        if let Some(certificates) = &self.certificates {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&certificates.ca);
            command.arg("--cert-file").arg(&certificates.cert).arg("--key-file").arg(&certificates.key);
        }
        command.args(self.options.arguments).stdout(log.try_clone().unwrap()).stderr(log);
        self.members[index].process = Some(command.spawn().unwrap());
    }

    /// Waits until every member that runs has a leader.
    pub fn wait(&mut self) {
        let start = Instant::now();
        while !self.running().all(|index| self.run(index, &["get", "x"]).is_ok()) {
            let ended = |member: &mut Member| member.process.as_mut().is_some_and(|p| p.try_wait().unwrap().is_some());
            assert!(!self.members.iter_mut().any(ended), "etcd ended: {}", self.log());
            assert!(start.elapsed() < START, "no etcd after {START:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `etcdctl` on the first member that runs; what it prints.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let index = self.running().next().expect("a member that runs");
        self.run(index, arguments).unwrap_or_else(|error| panic!("etcdctl {arguments:?}: {error}"))
    }

    fn run(&self, index: usize, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--command-timeout", "10s", "--endpoints", &self.endpoint(index)]);
        if let Some(user) = self.user {
            command.args(["--user", user]);
        }
        if let Some(certificates) = &self.certificates {
            command.arg("--cacert").arg(&certificates.ca);
            command.arg("--cert").arg(&certificates.cert).arg("--key").arg(&certificates.key);
        }
        let output = command.args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The member that leads.
    pub fn leader(&self) -> usize {
        let leads = |&index: &usize| {
            let status = self.run(index, &["endpoint", "status", "-w", "json"]).unwrap_or_default();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
            let status = &status[0]["Status"];
            !status.is_null() && status["leader"] == status["header"]["member_id"]
        };
        let start = Instant::now();
        loop {
            if let Some(index) = self.running().find(leads) {
                return index;
            }
            assert!(start.elapsed() < START, "no leader: {}", self.log());
        }
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        self.members.iter().enumerate().filter(|(_, member)| member.process.is_some()).map(|(index, _)| index)
    }

    /// Kills a member (SIGKILL). What it stored stays.
    pub fn kill(&mut self, index: usize) {
        let mut process = self.members[index].process.take().expect("a member that runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Lets a member stand still.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let process = self.members[index].process.as_ref().expect("a member that runs");
        kill_process(Pid::from_child(process), signal).unwrap();
    }

    /// Replaces a lone member's data by a snapshot of it, as an operator who restores a backup.
    pub fn restore(&mut self, snapshot: &Path) {
        self.kill(0);
        fs::remove_dir_all(self.data(0)).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.members[0].peer);
        let status = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .args(["--name", "m0", "--initial-cluster", &format!("m0={peer}"), "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(self.data(0))
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        self.start_member(0);
        self.wait();
    }

    fn data(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("data{index}"))
    }

    /// Its folder, for what a test needs beside.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the members said, the last of it.
    fn log(&self) -> String {
        let logs = (0..self.members.len()).map(|index| self.folder.path().join(format!("log{index}")));
        let texts = logs.map(|path| fs::read_to_string(path).unwrap_or_default());
        texts.map(|text| text.lines().rev().take(5).collect::<Vec<_>>().join("\n")).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.take()) {
            let mut process = process;
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// An authority, and a certificate by it for 127.0.0.1, for servers and clients alike.
#[derive(Clone, Debug)]
pub struct Certificates {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `folder`, in files whose names begin with `name`.
    pub fn make(folder: &Path, name: &str) -> Self {
        let file = |suffix: &str| folder.join(format!("{name}{suffix}"));
        let (ca, ca_key, cert, key, request) =
            (file(".pem"), file(".key"), file("-cert.pem"), file("-cert.key"), file("-cert.csr"));
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let openssl = |command: &mut Command| {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let new = || Command::new("openssl");
        openssl(
            new()
                .args(["req", "-x509", "-days", "2", "-subj", &format!("/CN={name}")])
                .args(new_key)
                .arg("-keyout")
                .arg(&ca_key)
                .arg("-out")
                .arg(&ca),
        );
        openssl(
            new()
                .args(["req", "-subj", "/CN=tapir", "-addext", "subjectAltName=IP:127.0.0.1"])
                .args(new_key)
                .arg("-keyout")
                .arg(&key)
                .arg("-out")
                .arg(&request),
        );
        openssl(
            new()
                .args(["x509", "-req", "-days", "2", "-copy_extensions", "copy", "-CAcreateserial"])
                .arg("-in")
                .arg(&request)
                .arg("-CA")
                .arg(&ca)
                .arg("-CAkey")
                .arg(&ca_key)
                .arg("-out")
                .arg(&cert),
        );
        Self { ca, cert, key }
    }
}
