use serde_json::json;

use super::*;

fn parse(json: Value) -> Result<Configuration, ConfError> {
    Configuration::parse(json.to_string().as_bytes())
}

fn base() -> Value {
    json!({"cniVersion": "1.1.0", "name": "tapir", "type": "tapir-cni"})
}

fn with(key: &str, value: Value) -> Value {
    let mut json = base();
    json[key] = value;
    json
}

fn wishes(key: &str, value: Value) -> Result<Wishes, ConfError> {
    parse(with(key, value)).unwrap().wishes(&Args::default())
}

#[test]
fn defaults_are_the_contracts() {
    let configuration = parse(base()).unwrap();
    assert_eq!(configuration.socket, PathBuf::from("/run/tapir/tapird.sock"));
    assert_eq!(configuration.timeout, Duration::from_secs(10));
    assert_eq!((configuration.ipam, configuration.log_file), (None, None));
    assert_eq!(configuration.log_level, Level::Info);
}

#[test]
fn unknown_keys_pass() {
    parse(with("whatever", json!({"a": [1, 2]}))).unwrap();
    assert_eq!(wishes("runtimeConfig", json!({"aliases": [{"HostPort": 80}]})).unwrap(), Wishes::default());
    // They are a runtime's to set, for the pod at hand.
    for key in ["portMappings", "bandwidth"] {
        assert_eq!(wishes(key, json!([{"hostPort": 80, "ingressRate": 1}])).unwrap(), Wishes::default());
    }
}

#[test]
fn versions_that_are_not_spoken_are_refused() {
    for version in [json!("0.1.0"), json!("0.2.0"), json!("2.0.0"), json!(""), json!(null)] {
        assert!(matches!(parse(with("cniVersion", version)), Err(ConfError::Version(_))));
    }
    for version in Version::ALL {
        assert_eq!(parse(with("cniVersion", version.as_str().into())).unwrap().version, version);
    }
}

#[test]
fn bad_values_are_named() {
    for (key, value) in [
        ("name", json!("")),
        ("name", json!("a/b")),
        ("name", json!(7)),
        ("socket", json!("relative")),
        ("socket", json!(format!("/{}", "x".repeat(200)))),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!("10")),
        ("timeout_ms", json!(-1)),
        ("timeout_ms", json!(1e9)),
        ("log_level", json!("loud")),
        ("log_file", json!(1)),
        ("ipam", json!("host-local")),
        ("dns", json!([])),
    ] {
        let text = parse(with(key, value.clone())).expect_err("it is wrong").to_string();
        assert!(text.starts_with(key), "{key} {value}: {text}");
    }
    for name in ["../evil", "/bin/sh", ".."] {
        let text = parse(with("ipam", json!({"type": name}))).unwrap_err().to_string();
        assert!(text.starts_with("ipam.type"), "{text}");
    }
}

#[test]
fn an_empty_ipam_is_none() {
    for ipam in [json!({}), json!({"type": ""}), json!(null)] {
        assert_eq!(parse(with("ipam", ipam)).unwrap().ipam, None);
    }
}

#[test]
fn runtime_config_is_read_in_any_case() {
    let wanted = Wishes {
        addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        ranges: vec![("10.1.0.10".parse().unwrap(), "10.1.0.20".parse().unwrap())],
        mac: Some("02:00:00:00:00:05".parse().unwrap()),
        ..Wishes::default()
    };
    for text in [
        r#"{"ips": ["10.0.0.5/24", "fd00::5"], "mac": "02:00:00:00:00:05",
            "ipRanges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20"}]]}"#,
        r#"{"IPs": ["10.0.0.5/24", "fd00::5"], "Mac": "02-00-00-00-00-05",
            "IPRanges": [[{"Subnet": "10.1.0.0/24", "RangeStart": "10.1.0.10", "RangeEnd": "10.1.0.20"}]]}"#,
    ] {
        assert_eq!(wishes("runtimeConfig", serde_json::from_str(text).unwrap()).unwrap(), wanted);
    }
}

fn host_ports(list: Value) -> Result<Vec<HostPort>, ConfError> {
    wishes("runtimeConfig", json!({"portMappings": list})).map(|wishes| wishes.host_ports)
}

#[test]
fn port_mappings_are_read_in_any_case() {
    let host_port = |address: Option<&str>, protocol, port, target| HostPort {
        address: address.map(|text| text.parse().unwrap()),
        protocol,
        port,
        target,
    };
    let wanted =
        [host_port(Some("172.31.0.1"), 6, 8080, 80), host_port(None, 17, 53, 5353), host_port(None, 6, 1, 65535)];
    for list in [
        // containerd
        json!([
            {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": "172.31.0.1"},
            {"HostPort": 53, "ContainerPort": 5353, "Protocol": "udp", "HostIP": ""},
            {"HostPort": 1, "ContainerPort": 65535, "Protocol": "tcp", "HostIP": "0.0.0.0"},
        ]),
        // podman
        json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "172.31.0.1"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
            {"hostPort": 1, "containerPort": 65535, "hostIP": "::"},
        ]),
    ] {
        assert_eq!(host_ports(list).unwrap(), wanted);
    }
    let sctp = json!([{"hostPort": 5, "containerPort": 6, "protocol": "SCTP", "hostIP": "::ffff:10.0.0.9"}]);
    assert_eq!(host_ports(sctp).unwrap(), [host_port(Some("10.0.0.9"), 132, 5, 6)]);
}

#[test]
fn port_mappings_without_a_host_port_are_none() {
    let none = [json!({"containerPort": 80}), json!({"hostPort": 0, "containerPort": 80}), json!({"hostPort": -1})];
    assert_eq!(host_ports(json!(none)).unwrap(), []);
    assert_eq!(host_ports(json!(null)).unwrap(), []);
    // Every address of either family, from a runtime that lists families.
    let both = ["0.0.0.0", "::"].map(|any| json!({"hostPort": 80, "containerPort": 80, "hostIP": any}));
    assert_eq!(host_ports(json!(both)).unwrap().len(), 1);
    // The daemon refuses this one.
    let twice = [json!({"hostPort": 80, "containerPort": 80}), json!({"hostPort": 80, "containerPort": 80})];
    assert_eq!(host_ports(json!(twice)).unwrap().len(), 2);
}

#[test]
fn bad_traffic_wishes_are_named_as_invalid() {
    let many: Vec<Value> = (1..=257).map(|port| json!({"hostPort": port, "containerPort": port})).collect();
    assert_eq!(host_ports(json!(many[..256])).unwrap().len(), 256);
    for (key, value) in [
        ("portMappings", json!({ "portMappings": many })),
        ("portMappings", json!({"portMappings": [80]})),
        ("portMappings.hostPort", json!({"portMappings": [{"hostPort": 65536, "containerPort": 80}]})),
        ("portMappings.hostPort", json!({"portMappings": [{"hostPort": "80", "containerPort": 80}]})),
        ("portMappings.hostPort", json!({"portMappings": [{"hostPort": 80.5, "containerPort": 80}]})),
        ("portMappings.containerPort", json!({"portMappings": [{"hostPort": 80}]})),
        ("portMappings.containerPort", json!({"portMappings": [{"hostPort": 80, "containerPort": 65536}]})),
        ("portMappings.containerPort", json!({"portMappings": [{"hostPort": 80, "containerPort": -80}]})),
        ("portMappings.protocol", json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]})),
        ("portMappings.hostIP", json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "eth0"}]})),
        ("portMappings.hostIP", json!({"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "ff02::1"}]})),
        ("bandwidth.ingressBurst", json!({"bandwidth": {"ingressRate": 1}})),
        ("bandwidth.ingressRate", json!({"bandwidth": {"ingressBurst": 1}})),
        ("bandwidth.egressBurst", json!({"bandwidth": {"EgressRate": 1, "EgressBurst": 0}})),
        ("bandwidth.egressRate", json!({"bandwidth": {"egressRate": -1, "egressBurst": 1}})),
        ("bandwidth.egressRate", json!({"bandwidth": {"egressRate": "10M", "egressBurst": 1}})),
        ("bandwidth.ingressRate", json!({"bandwidth": {"ingressRate": 1.5, "ingressBurst": 1}})),
        ("bandwidth.ingressBurst", json!({"bandwidth": {"ingressRate": 1, "ingressBurst": 8 * u64::from(u32::MAX)}})),
    ] {
        let error = wishes("runtimeConfig", value.clone()).expect_err("it is wrong");
        assert!(error.to_string().starts_with(&format!("runtimeConfig.{key}: ")), "{value}: {error}");
        assert_eq!(crate::error::CniError::from(error).code, 7, "{value}");
    }
}

#[test]
fn bandwidth_is_read_in_any_case() {
    let wanted = Bandwidth { ingress_rate: 1_000_000, ingress_burst: 8000, egress_rate: 0, egress_burst: 0 };
    for bandwidth in [
        json!({"ingressRate": 1_000_000, "ingressBurst": 8000}),
        json!({"IngressRate": 1_000_000, "IngressBurst": 8000, "EgressRate": 0, "EgressBurst": 0}),
    ] {
        assert_eq!(wishes("runtimeConfig", json!({ "bandwidth": bandwidth })).unwrap().bandwidth, wanted);
    }
    let most = json!({"bandwidth": {"egressRate": u64::MAX, "egressBurst": 8 * u64::from(u32::MAX) - 1}});
    assert_eq!(wishes("runtimeConfig", most).unwrap().bandwidth.egress_rate, u64::MAX);
}

#[test]
fn go_s_nulls_and_empty_strings_wish_nothing() {
    let nulls =
        json!({"ips": null, "ipRanges": null, "mac": "", "deviceID": "", "portMappings": null, "bandwidth": null});
    assert_eq!(wishes("runtimeConfig", nulls).unwrap(), Wishes::default());
}

#[test]
fn runtime_config_wins_over_args_and_args_over_the_environment() {
    let args = Args::parse("IP=10.0.0.1;MAC=02:00:00:00:00:01").unwrap();
    let mut json = base();
    let address = |configuration: &Value| parse(configuration.clone()).unwrap().wishes(&args).unwrap().addresses;
    let is = |address: &str| vec![address.parse::<IpAddr>().unwrap()];
    assert_eq!(address(&json), is("10.0.0.1"));
    json["args"] = json!({"cni": {"ips": ["10.0.0.2"]}});
    assert_eq!(address(&json), is("10.0.0.2"));
    json["runtimeConfig"] = json!({"ips": ["10.0.0.3"]});
    assert_eq!(address(&json), is("10.0.0.3"));
}

#[test]
fn a_range_without_bounds_leaves_out_what_no_host_can_have() {
    for (subnet, first, last) in [
        ("10.1.0.0/24", "10.1.0.1", "10.1.0.254"),
        ("10.1.0.0/31", "10.1.0.0", "10.1.0.1"),
        ("10.1.0.7/32", "10.1.0.7", "10.1.0.7"),
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::4/127", "fd00::4", "fd00::5"),
    ] {
        let wishes = wishes("runtimeConfig", json!({"ipRanges": [[{"subnet": subnet}]]})).unwrap();
        assert_eq!(wishes.ranges, [(first.parse().unwrap(), last.parse().unwrap())], "{subnet}");
    }
}

#[test]
fn bad_wishes_are_named() {
    let many: Vec<String> = (0..=MAX_WISHES).map(|n| format!("10.0.0.{n}")).collect();
    for (key, value) in [
        ("runtimeConfig.ips", json!({"ips": ["10.0.0"]})),
        ("runtimeConfig.ips", json!({"ips": [5]})),
        ("runtimeConfig.ips", json!({"ips": "10.0.0.1"})),
        ("runtimeConfig", json!({ "ips": many })),
        ("runtimeConfig.mac", json!({"mac": "nonsense"})),
        ("runtimeConfig.mac", json!({"mac": 5})),
        ("mac", json!({"mac": "01:00:5e:00:00:01"})),
        ("mac", json!({"mac": "ee:ee:ee:ee:ee:ee"})),
        ("runtimeConfig.ipRanges", json!({"ipRanges": [{}]})),
        ("runtimeConfig.ipRanges", json!({"ipRanges": [[{}]]})),
        ("runtimeConfig.ipRanges", json!({"ipRanges": [[{"subnet": "10.0.0.0/33"}]]})),
        ("runtimeConfig.ipRanges", json!({"ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}]]})),
        ("runtimeConfig.ipRanges", json!({"ipRanges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "fd00::1"}]]})),
        (
            "runtimeConfig.ipRanges",
            json!({"ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"}]]}),
        ),
        ("runtimeConfig.deviceID", json!({"deviceID": "0000:00:1f.6"})),
    ] {
        let text = wishes("runtimeConfig", value.clone()).expect_err("it is wrong").to_string();
        assert!(text.starts_with(key), "{value}: {text}");
    }
}

#[test]
fn gc_reads_either_key_and_needs_one() {
    let keep = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let wanted = [AttachmentId { container_id: "c1".into(), interface: "eth0".into() }];
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(parse(with(key, keep.clone())).unwrap().valid_attachments().unwrap(), wanted);
        assert_eq!(parse(with(key, json!(null))).unwrap().valid_attachments().unwrap(), []);
        for wrong in [json!({}), json!([{}]), json!([{"containerID": "c1"}]), json!([1])] {
            assert!(parse(with(key, wrong)).unwrap().valid_attachments().is_err());
        }
    }
    assert!(parse(base()).unwrap().valid_attachments().is_err());
}

#[test]
fn what_is_no_configuration_is_refused() {
    let long = vec![b' '; MAX_CONFIGURATION + 1];
    assert!(matches!(Configuration::parse(&long), Err(ConfError::TooLong)));
    for text in ["", "[]", "null", "{", "{\"cniVersion\"", "\u{0}"] {
        assert!(matches!(Configuration::parse(text.as_bytes()), Err(ConfError::NotJson(_))), "{text:?}");
    }
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(matches!(Configuration::parse(deep.as_bytes()), Err(ConfError::NotJson(_))));
}
