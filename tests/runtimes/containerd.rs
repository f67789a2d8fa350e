//! containerd on a node, and a client of its CRI as kubelet is one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, PortMapping, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::image::IMAGE;
use crate::lab::{eventually, succeed};
use crate::node::Node;

/// What containerd and its tests need.
pub const NEEDED: [&str; 5] = ["containerd", "ctr", "runc", "/bin/busybox", "/usr/lib/cni/loopback"];

/// The namespace of Kubernetes' containers within containerd.
const NAMESPACE: &str = "k8s.io";

/// containerd, killed with the value; its containers stay.
pub struct Containerd<'a> {
    node: &'a Node,
    socket: PathBuf,
    process: Option<Child>,
    client: Option<RuntimeServiceClient<Channel>>,
    runtime: Runtime,
}

/// A pod's sandbox.
pub struct Sandbox {
    /// The name of the pod.
    pub pod: String,
    /// As containerd calls it.
    pub id: String,
    config: PodSandboxConfig,
}

impl<'a> Containerd<'a> {
    /// Starts it, with the image.
    #[track_caller]
    pub fn start(node: &'a Node) -> Self {
        node.install("loopback");
        let folder = node.folder.join("containerd");
        fs::create_dir_all(&folder).unwrap();
        let socket = folder.join("containerd.sock");
        fs::write(folder.join("config.toml"), config(&folder.display().to_string())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut containerd = Self { node, socket, process: None, client: None, runtime };
        containerd.spawn();
        succeed(containerd.ctr().args(["image", "import"]).arg(&node.image));
        containerd
    }

    /// Starts it again.
    #[track_caller]
    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let config = self.socket.with_file_name("config.toml");
        let mut command = self.node.command("containerd");
        command.arg("--config").arg(config).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        let serves = eventually(Duration::from_secs(30), || {
            self.client = self.connect().ok();
            self.client.is_some()
        });
        assert!(serves, "containerd doesn't serve:\n{}", fs::read_to_string(self.log()).unwrap_or_default());
    }

    fn connect(&self) -> Result<RuntimeServiceClient<Channel>, Box<dyn std::error::Error>> {
        self.runtime.block_on(async {
            let channel = Endpoint::from_shared(format!("unix://{}", self.socket.display()))?.connect().await?;
            let mut client = RuntimeServiceClient::new(channel);
            client.version(k8s_cri::v1::VersionRequest::default()).await?;
            Ok(client)
        })
    }

    fn log(&self) -> PathBuf {
        self.socket.with_file_name("log")
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.client = None;
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// `ctr`, for more arguments.
    pub fn ctr(&self) -> Command {
        let mut command = self.node.command("ctr");
        command.arg("--address").arg(&self.socket).args(["--namespace", NAMESPACE]);
        command
    }

    /// RunPodSandbox.
    pub fn run(&mut self, pod: &str, ports: &[PortMapping], annotations: &[(&str, &str)]) -> Result<Sandbox, Status> {
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: pod.into(),
                uid: format!("uid-{pod}"),
                namespace: "shop".into(),
                attempt: 0,
            }),
            hostname: pod.into(),
            log_directory: self.socket.with_file_name("logs").display().to_string(),
            port_mappings: ports.to_vec(),
            annotations: annotations.iter().map(text).collect::<HashMap<_, _>>(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.node.cgroup.clone(), ..Default::default() }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let client = self.client.as_mut().expect("started");
        let answer = self.runtime.block_on(client.run_pod_sandbox(request))?.into_inner();
        Ok(Sandbox { pod: pod.into(), id: answer.pod_sandbox_id, config })
    }

    /// CreateContainer and StartContainer; returns the container.
    #[track_caller]
    pub fn container(&mut self, sandbox: &Sandbox, command: &[&str]) -> String {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..Default::default() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log_path: format!("{}.log", sandbox.pod),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let client = self.client.as_mut().expect("started");
        self.runtime.block_on(async {
            let container_id = client.create_container(request).await.unwrap().into_inner().container_id;
            client.start_container(StartContainerRequest { container_id: container_id.clone() }).await.unwrap();
            container_id
        })
    }

    /// ExecSync: exit code and output.
    #[track_caller]
    pub fn exec(&mut self, container: &str, command: &str) -> (i32, String) {
        let cmd = command.split_whitespace().map(str::to_owned).collect();
        let request = ExecSyncRequest { container_id: container.into(), cmd, timeout: 60 };
        let client = self.client.as_mut().expect("started");
        let answer = self.runtime.block_on(client.exec_sync(request)).unwrap().into_inner();
        (answer.exit_code, String::from_utf8_lossy(&[answer.stdout, answer.stderr].concat()).into_owned())
    }

    /// PodSandboxStatus: the address.
    #[track_caller]
    pub fn address(&mut self, sandbox: &Sandbox) -> String {
        let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: false };
        let client = self.client.as_mut().expect("started");
        let answer = self.runtime.block_on(client.pod_sandbox_status(request)).unwrap().into_inner();
        answer.status.unwrap().network.unwrap().ip
    }

    /// StopPodSandbox.
    #[track_caller]
    pub fn stop(&mut self, sandbox: &Sandbox) {
        let request = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        self.runtime.block_on(self.client.as_mut().expect("started").stop_pod_sandbox(request)).unwrap();
    }

    /// RemovePodSandbox.
    #[track_caller]
    pub fn remove(&mut self, sandbox: &Sandbox) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        self.runtime.block_on(self.client.as_mut().expect("started").remove_pod_sandbox(request)).unwrap();
    }

    /// Status: whether pods can be given networks, and what is said of it.
    #[track_caller]
    pub fn network_ready(&mut self) -> (bool, String) {
        let request = StatusRequest::default();
        let answer =
            self.runtime.block_on(self.client.as_mut().expect("started").status(request)).unwrap().into_inner();
        let conditions = answer.status.unwrap().conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady").unwrap();
        (network.status, network.message)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("level=info")).collect();
            println!("containerd of {}:\n{}", self.node.name, lines.join("\n"));
        }
    }
}

/// No kernel features but overlays and cgroups, and no capability that root in a container lacks.
fn config(folder: &str) -> String {
    format!(
        r#"
        version = 2
        root = "{folder}/root"
        state = "{folder}/state"
        disabled_plugins = [
            "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
            "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
        ]
        [grpc]
        address = "{folder}/containerd.sock"
        [plugins."io.containerd.grpc.v1.cri"]
        sandbox_image = "{IMAGE}"
        disable_apparmor = true
        restrict_oom_score_adj = true
        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "/opt/cni/bin"
        conf_dir = "/etc/cni/net.d"
        max_conf_num = 1
        "#
    )
}
