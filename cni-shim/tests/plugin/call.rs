//! One call of the plugin, in this process.

use std::path::Path;

use serde_json::{Value, json};
use tapir_cni::env::Variables;

/// What the plugin is called with.
#[derive(Clone)]
pub struct Call {
    pub variables: Variables,
    pub configuration: Value,
}

/// What it answered.
#[derive(Debug)]
pub struct Answer {
    pub exit: u8,
    pub text: String,
}

impl Call {
    /// `command` for interface `eth0` of container `c1` in `netns`, with the daemon at `socket`.
    pub fn new(command: &str, netns: &Path, socket: &Path) -> Self {
        let call = Self {
            variables: Variables::new(),
            configuration: json!({
                "cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni", "socket": socket, "timeout_ms": 5000,
            }),
        };
        call.variable("CNI_COMMAND", command)
            .variable("CNI_CONTAINERID", "c1")
            .variable("CNI_IFNAME", "eth0")
            .variable("CNI_NETNS", netns.to_str().unwrap())
    }

    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    pub fn key(mut self, key: &str, value: Value) -> Self {
        self.configuration[key] = value;
        self
    }

    pub fn version(self, version: &str) -> Self {
        self.key("cniVersion", version.into())
    }

    /// The same parameters with another verb.
    pub fn verb(&self, command: &str) -> Self {
        self.clone().variable("CNI_COMMAND", command)
    }

    pub fn run(&self) -> Answer {
        let stdin = self.configuration.to_string();
        let mut stdout = Vec::new();
        let exit = tapir_cni::run(&self.variables, &mut stdin.as_bytes(), &mut stdout);
        Answer { exit, text: String::from_utf8(stdout).unwrap() }
    }

    /// Runs it; it has to succeed and print a result.
    pub fn result(&self) -> Value {
        let answer = self.run();
        assert_eq!(answer.exit, 0, "{}", answer.text);
        serde_json::from_str(&answer.text).unwrap()
    }

    /// Runs it; it has to succeed and print nothing.
    pub fn succeed(&self) {
        let answer = self.run();
        assert_eq!((answer.exit, answer.text.as_str()), (0, ""));
    }

    /// Runs it; it has to fail with this code, in the configuration's version, and say all of `words`.
    pub fn fail(&self, code: u32, words: &[&str]) -> Value {
        let answer = self.run();
        assert_eq!(answer.exit, 1, "{}", answer.text);
        let error: Value = serde_json::from_str(&answer.text).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["cniVersion"], self.configuration["cniVersion"], "{error}");
        let text = format!("{} {}", error["msg"], error["details"]);
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
        error
    }
}
