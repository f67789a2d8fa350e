//! A lab as a value: it is up while the value lives.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How many tests make noise, and whether one wants silence.
static NOISE: Mutex<(u32, bool)> = Mutex::new((0, false));
static NOISE_CHANGED: Condvar = Condvar::new();

/// Held by a test that loads the machine.
pub struct Noisy;

/// Waits while somebody measures.
pub fn noisy() -> Noisy {
    let noise = NOISE.lock().expect("no panic");
    let mut noise = NOISE_CHANGED.wait_while(noise, |(_, silence)| *silence).expect("no panic");
    noise.0 += 1;
    Noisy
}

impl Drop for Noisy {
    fn drop(&mut self) {
        NOISE.lock().expect("no panic").0 -= 1;
        NOISE_CHANGED.notify_all();
    }
}

/// Held by a test that takes figures.
pub struct Measuring;

/// Waits until no other test loads the machine, and keeps it so.
pub fn measuring() -> Measuring {
    let noise = NOISE.lock().expect("no panic");
    let mut noise = NOISE_CHANGED.wait_while(noise, |(_, silence)| *silence).expect("no panic");
    noise.1 = true;
    drop(NOISE_CHANGED.wait_while(noise, |(tests, _)| *tests > 0).expect("no panic"));
    Measuring
}

impl Drop for Measuring {
    fn drop(&mut self) {
        NOISE.lock().expect("no panic").1 = false;
        NOISE_CHANGED.notify_all();
    }
}

/// Whether namespaces and TAPs can be had here; says `skipped:` when not.
pub fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return false;
    }
    if !Path::new("/dev/net/tun").exists() {
        println!("skipped: there is no /dev/net/tun");
        return false;
    }
    true
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where the programs are: `$TAPIR_BIN`, else built once by `scripts/build`.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(given) = std::env::var_os("TAPIR_BIN") {
            return given.into();
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let status = Command::new("scripts/build").current_dir(repository()).status().expect("run scripts/build");
        assert!(status.success(), "scripts/build failed");
        target.join("release")
    })
}

/// Runs to the end, and returns standard output; panics with all of the output when it fails.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command printed, both ways.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until `condition` holds; false after `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

/// Namespaces of labs whose name is `name`, as `ip netns list` has them.
pub fn namespaces(name: &str) -> Vec<String> {
    let prefix = format!("tapir-{name}-");
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| n.starts_with(&prefix)).collect()
}

/// A name for a lab that nobody else has.
pub fn fresh_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    format!("e{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A lab that is up.
pub struct Lab {
    pub name: String,
    _noise: Option<Noisy>,
}

impl Lab {
    /// Starts one; `options` are those of `scripts/lab up`.
    #[track_caller]
    pub fn up(options: &[&str]) -> Self {
        Self::start(Some(noisy()), options)
    }

    /// The same for a test that is [`Measuring`].
    #[track_caller]
    pub fn up_while(_: &Measuring, options: &[&str]) -> Self {
        Self::start(None, options)
    }

    #[track_caller]
    fn start(noise: Option<Noisy>, options: &[&str]) -> Self {
        let lab = Self { name: fresh_name(), _noise: noise };
        succeed(lab.script().arg("up").arg("--bin").arg(programs()).args(options));
        lab
    }

    /// The lab in `slot`, started if no test uses it at the moment.
    pub fn shared(slot: &Mutex<Weak<Self>>, options: &[&str]) -> Arc<Self> {
        let mut slot = slot.lock().unwrap_or_else(|poison| poison.into_inner());
        slot.upgrade().unwrap_or_else(|| {
            let lab = Arc::new(Self::up(options));
            *slot = Arc::downgrade(&lab);
            lab
        })
    }

    /// `scripts/lab`, for more arguments.
    pub fn script(&self) -> Command {
        let mut command = Command::new(repository().join("scripts/lab"));
        command.args(["--name", &self.name]);
        command
    }

    /// Runs `scripts/lab ARGUMENTS` and returns what it printed.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        succeed(self.script().args(arguments))
    }

    /// A command in the namespace of a node or pod.
    pub fn at(&self, place: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns(place), program]);
        command
    }

    /// Runs the words of `command` at `place`.
    pub fn output(&self, place: &str, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let mut command = self.at(place, words.next().expect("a program"));
        command.args(words).output().expect("run ip netns exec")
    }

    /// The same, which has to succeed.
    #[track_caller]
    pub fn check(&self, place: &str, command: &str) -> String {
        let output = self.output(place, command);
        assert!(output.status.success(), "{place}: {command}: {}\n{}", output.status, text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn netns(&self, place: &str) -> String {
        format!("tapir-{}-{place}", self.name)
    }

    /// Runs `work` on a thread in the namespace of `place`; sockets that it makes stay there.
    #[track_caller]
    pub fn inside<T: Send>(&self, place: &str, work: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(self.netns(place));
        let netns = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        tapir::sys::netns::run_in(&netns, work).expect("enter the namespace")
    }

    pub fn state(&self) -> PathBuf {
        Path::new("/run/tapir-lab").join(&self.name)
    }

    #[track_caller]
    pub fn v4(&self, pod: &str) -> IpAddr {
        self.run(&["addr", pod, "4"]).trim().parse().expect("one IPv4 address")
    }

    #[track_caller]
    pub fn v6(&self, pod: &str) -> IpAddr {
        self.run(&["addr", pod, "6"]).trim().parse().expect("one IPv6 address")
    }

    /// The MAC of a place's interface.
    #[track_caller]
    pub fn mac(&self, place: &str, interface: &str) -> [u8; 6] {
        self.inside(place, pnet_datalink::interfaces)
            .iter()
            .find(|found| found.name == interface)
            .and_then(|found| found.mac)
            .unwrap_or_else(|| panic!("{place} has no {interface} with a MAC"))
            .octets()
    }

    /// `tapirctl -o json VERB…` on a node. Its exit status tells health, so only the output counts.
    #[track_caller]
    pub fn ctl(&self, node: &str, verb: &[&str]) -> Value {
        let output = self.script().args(["ctl", node, "-o", "json"]).args(verb).output().expect("run scripts/lab");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("tapirctl {verb:?}: {error}\n{}", text(&output)))
    }

    /// How often a node dropped for `reason`.
    #[track_caller]
    pub fn drops(&self, node: &str, reason: &str) -> u64 {
        self.ctl(node, &["drops"])["counters"][reason].as_u64().unwrap_or(0)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            let logs = format!("tail -n 20 {}/n*/tapird.log", self.state().display());
            let _ = Command::new("sh").args(["-c", &logs]).status();
        }
        let output = self.script().arg("down").output();
        let left = namespaces(&self.name);
        if !thread::panicking() {
            let output = output.expect("run scripts/lab down");
            assert!(output.status.success() && left.is_empty(), "lab down: {}, left {left:?}", text(&output));
        }
    }
}

/// A process in the background, killed with the value. Its output is read line by line.
pub struct Background {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Background {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self { child, lines }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().expect("piped")
    }

    /// Waits for a line with `needle` in it; returns all lines up to it.
    #[track_caller]
    pub fn wait_for(&mut self, needle: &str, limit: Duration) -> Vec<String> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            let found = line.contains(needle);
            seen.push(line);
            if found {
                return seen;
            }
        }
        panic!("no {needle:?} within {limit:?}, but:\n{}", seen.join("\n"));
    }

    /// Waits for its end: exit code (`None`: a signal) and the rest of the output.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let end = Instant::now() + limit;
        let mut rest = String::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            rest.push_str(&line);
            rest.push('\n');
        }
        let mut status = None;
        let ended = eventually(end.saturating_duration_since(Instant::now()), || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        assert!(ended, "still running after {limit:?}:\n{rest}");
        (status.and_then(|status| status.code()), rest)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
