use super::*;

fn error(text: &str) -> String {
    Config::parse(text, Path::new("t.toml")).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = Config::parse("", Path::new("t.toml")).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.node.http(), Some("127.0.0.1:9477".parse().unwrap()));
}

#[test]
fn a_full_file_is_read_and_host_bits_are_cut() {
    let text = r#"
        [node]
        name = "node-1"
        address = "172.31.0.1"
        socket = "/run/t.sock"
        state_dir = "/var/lib/t"
        http = ""
        workers = 4
        [network]
        pools = ["10.244.3.4/16", "fd00::/48"]
        mtu = 1400
        node_cidrs = ["10.244.0.9/24", "fd00:0:0:1::/64"]
        [underlay]
        interface = "eth1"
        backend = "raw"
        transport = "auto"
        [store]
        kind = "embedded"
        [[peer]]
        name = "node-2"
        address = "172.31.0.2"
        pods = ["10.244.1.9/24"]
    "#;
    let config = Config::parse(text, Path::new("t.toml")).unwrap();
    assert_eq!(config.network.pools[0].cidr.to_string(), "10.244.0.0/16");
    assert_eq!(config.network.node_cidrs[0].to_string(), "10.244.0.0/24");
    assert_eq!(config.peers[0].pods[0].to_string(), "10.244.1.0/24");
    assert_eq!(config.network.mtu, Auto(Some(1400)));
    assert_eq!(config.node.http(), None);
    assert_eq!(config.node.workers, Auto(Some(4)));
    assert_eq!(config.underlay.transport, Transport::Auto);
    assert_eq!(Config::default().underlay.transport, Transport::Ipip);
}

#[test]
fn pools_are_ranges_or_tables() {
    let text = r#"
        [node]
        labels = { zone = "a", "topology.kubernetes.io/region" = "" }
        [network]
        pools = [
          "10.244.3.4/16",
          { cidr = "10.9.0.0/24", block_size = 28, node_selector = "zone == \"a\"", disabled = true,
            encapsulation = "never", nat_outgoing = false, reserved = ["10.9.0.1/28"] },
          { cidr = "fd00::/126" },
        ]
        block_size = 25
        block_size_v6 = 120
        strict_affinity = true
        max_blocks = 0
        ipam = "static"
        node_cidrs = ["10.244.7.0/24"]
        [underlay]
        encapsulation = "cross-subnet"
    "#;
    let config = Config::parse(text, Path::new("t.toml")).unwrap();
    let pools = &config.network.pools;
    assert_eq!(pools[0], Pool::new("10.244.0.0/16".parse().unwrap()));
    assert_eq!(pools[1].reserved, ["10.9.0.0/28".parse().unwrap()]);
    let selected = |selector: &str| Pool { node_selector: selector.into(), ..pools[0].clone() };
    let zone = std::collections::BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    assert_eq!(pools[1].selector(), Ok(zone.clone()));
    assert_eq!(selected("zone=a").selector(), Ok(zone));
    assert_eq!(selected("zone=a, disk == 'ssd'").selector().unwrap().len(), 2);
    assert_eq!(selected("has(zone)").selector(), Err("has(zone)"));
    let of = |pool: &Pool| (config.block_size(pool), config.encapsulation(pool), config.nat_outgoing(pool));
    assert_eq!(of(&pools[0]), (25, Encapsulation::CrossSubnet, true));
    assert_eq!(of(&pools[1]), (28, Encapsulation::Never, false));
    assert_eq!(of(&pools[2]), (126, Encapsulation::Always, true), "a pool smaller than a block is one");
    let tables = "[[network.pools]]\ncidr = \"10.1.0.0/16\"\n[[network.pools]]\ncidr = \"10.2.0.0/16\"\n";
    assert_eq!(Config::parse(tables, Path::new("t.toml")).unwrap().network.pools.len(), 2);
}

#[test]
fn what_is_wrong_with_a_pool_is_named() {
    let keys = "`cidr`, `block_size`, `node_selector`, `disabled`, `encapsulation`, `nat_outgoing`, `reserved`";
    for (text, message) in [
        (
            "[network]\npools = [\n{ cidr = \"10.0.0.0/8\", nat = 1 }]\n",
            &*format!("t.toml:3: network.pools: unknown key `nat`, expected one of {keys}"),
        ),
        (
            "[[network.pools]]\ncidr = \"10.0.0.0/8\"\nnat = 1\n",
            &*format!("t.toml:3: network.pools[0].nat: unknown key `nat`, expected one of {keys}"),
        ),
        ("[network]\npools = [{ disabled = true }]\n", "t.toml:2: network.pools: missing field `cidr`"),
        (
            "[network]\npools = [7]\n",
            "t.toml:2: network.pools: invalid type: integer `7`, expected a CIDR, or a table with one",
        ),
        (
            "[[network.pools]]\ncidr = \"10.0.0.0/8\"\nblock_size = 19\n",
            "t.toml:3: network.pools[0].block_size: 19 is not within 20 to 32",
        ),
        (
            "[network]\npools = [{ cidr = \"fd00::/120\", block_size = 118 }]\n",
            "t.toml:2: network.pools[0].block_size: a /118 is larger than the pool fd00::/120",
        ),
        (
            "[network]\npools = [{ cidr = \"fd00::/48\", encapsulation = \"never\" }]\n",
            "t.toml:2: network.pools[0].encapsulation: IPv6 always goes through the tunnel, as nodes have IPv4 \
             addresses: \"always\"",
        ),
        (
            "[network]\npools = [{ cidr = \"10.0.0.0/8\", reserved = [\"11.0.0.0/8\"] }]\n",
            "t.toml:2: network.pools[0].reserved: 11.0.0.0/8 is not in the pool 10.0.0.0/8",
        ),
        ("[network]\nblock_size = 33\n", "t.toml:2: network.block_size: 33 is not within 20 to 32"),
        ("[network]\nblock_size_v6 = 64\n", "t.toml:2: network.block_size_v6: 64 is not within 116 to 128"),
        ("[network]\nipam = \"static\"\n", "t.toml:2: network.ipam: \"static\" needs network.node_cidrs"),
        (
            "[network]\npools = [{ cidr = \"10.9.0.0/24\", node_selector = \"zone != 'a'\" }]\n",
            "t.toml:2: network.pools[0].node_selector: \"zone !\" can't be the key of a label",
        ),
        (
            "[underlay]\nencapsulation = \"ipip\"\n",
            "t.toml:2: underlay.encapsulation: unknown variant `ipip`, expected one of `always`, `cross-subnet`, \
             `never`",
        ),
        ("[node.labels]\na = \"b c\"\n", "t.toml:1: node.labels: \"b c\" can't be the value of the label a"),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn syntax_errors_name_file_line_and_key() {
    for (text, message) in [
        ("x", "t.toml:1: key with no value, expected `=`"),
        ("[node]\nname = 3\n", "t.toml:2: node.name: invalid type: integer `3`, expected a string"),
        (
            "[node]\n\nfoo = 3\n",
            "t.toml:3: node.foo: unknown key `foo`, expected one of `name`, `address`, `socket`, `state_dir`, `http`, `workers`, `labels`, `zone`",
        ),
        (
            "[nodes]\n",
            "t.toml:1: nodes: unknown key `nodes`, expected one of `node`, `network`, `underlay`, `store`, `kubernetes`, `peer`",
        ),
        (
            "[network]\npools = [\n  \"10.0.0.0/8\",\n  \"10.1\",\n]\n",
            "t.toml:4: network.pools: invalid IP address syntax",
        ),
        ("[network]\nmtu = \"big\"\n", "t.toml:2: network.mtu: neither \"auto\" nor a number from 0 to 65535: \"big\""),
        ("[network]\nmtu = 70000\n", "t.toml:2: network.mtu: neither \"auto\" nor a number from 0 to 65535: 70000"),
        (
            "[[peer]]\nname = \"a\"\naddress = \"1.2.3.4\"\npods = []\n\n[[peer]]\nname = \"b\"\n",
            "t.toml:6: peer[1]: missing field `address`",
        ),
        ("[[peer]]\nname = \"a\"\naddress = \"nowhere\"\n", "t.toml:3: peer[0].address: invalid IPv4 address syntax"),
        ("[node]\nname = \"a\"\nname = \"b\"\n", "t.toml:3: node.name: duplicate key"),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn what_later_versions_have_is_named_as_such() {
    for (text, message) in [
        ("[network]\npolicy_dir = \"/\"\n", "t.toml:2: network.policy_dir: not in this version of tapir; remove it"),
        ("[bgp]\nenabled = false\n", "t.toml:1: bgp: not in this version of tapir; remove it"),
        ("[[bgp.peer]]\naddress = \"1.1.1.1\"\n", "t.toml:1: bgp.peer[0]: not in this version of tapir; remove it"),
        (
            "[underlay]\ntransport = \"tcp\"\n",
            "t.toml:2: underlay.transport: unknown variant `tcp`, expected one of `ipip`, `udp`, `auto`",
        ),
        (
            "[underlay]\nbackend = \"dpdk\"\n",
            "t.toml:2: underlay.backend: unknown variant `dpdk`, expected one of `auto`, `gso`, `raw`",
        ),
    ] {
        assert_eq!(error(text), message);
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let peer = |name: &str, address: &str, pods: &str| {
        format!("[[peer]]\nname = \"{name}\"\naddress = \"{address}\"\npods = [{pods}]\n")
    };
    let node = "[node]\nname = \"n1\"\naddress = \"172.31.0.1\"\n[network]\nnode_cidrs = [\"10.244.0.0/24\"]\n";
    for (text, message) in [
        ("[node]\nname = \"a b\"\n".into(), "t.toml:2: node.name: \"a b\" is not a host name"),
        ("[node]\naddress = \"127.0.0.1\"\n".into(), "t.toml:2: node.address: 127.0.0.1 can't be a node's address"),
        ("[node]\nsocket = \"run/t.sock\"\n".into(), "t.toml:2: node.socket: run/t.sock is not an absolute path"),
        ("[node]\nstate_dir = \"state\"\n".into(), "t.toml:2: node.state_dir: state is not an absolute path"),
        ("[node]\nstate_dir = \"/\"\n".into(), "t.toml:2: node.state_dir: a folder of its own is needed"),
        (
            format!("[node]\nsocket = \"/{}\"\n", "x".repeat(107)),
            "t.toml:2: node.socket: not a file name of at most 107 bytes",
        ),
        (
            "[node]\nhttp = \"9477\"\n".into(),
            "t.toml:2: node.http: \"9477\" is not an address and port like 127.0.0.1:9477; \"\" turns it off",
        ),
        ("[node]\nworkers = 0\n".into(), "t.toml:2: node.workers: \"auto\", or 1 to 16"),
        ("[node]\nworkers = 17\n".into(), "t.toml:2: node.workers: \"auto\", or 1 to 16"),
        ("[network]\npools = []\n".into(), "t.toml:2: network.pools: at least one range is needed"),
        (
            "[network]\npools = [\"10.0.0.0/8\", \"10.1.0.0/16\"]\n".into(),
            "t.toml:2: network.pools: 10.1.0.0/16 overlaps 10.0.0.0/8",
        ),
        (
            "[network]\npools = [\"0.0.0.0/0\"]\n".into(),
            "t.toml:2: network.pools: 0.0.0.0/0 overlaps 0.0.0.0/8, where no pod can live",
        ),
        (
            "[network]\npools = [\"169.254.0.0/24\"]\n".into(),
            "t.toml:2: network.pools: 169.254.0.0/24 overlaps 169.254.0.0/16, where no pod can live",
        ),
        (
            "[node]\naddress = \"10.244.0.1\"\n".into(),
            "t.toml: network.pools: 10.244.0.0/16 holds node.address, 10.244.0.1: pods and nodes need separate ranges",
        ),
        ("[network]\nmtu = 500\n".into(), "t.toml:2: network.mtu: 500 is not within 576 to 65515"),
        ("[network]\nmtu = 65516\n".into(), "t.toml:2: network.mtu: 65516 is not within 576 to 65515"),
        (
            "[network]\npools = [\"fd00::/48\"]\nmtu = 1279\n".into(),
            "t.toml:3: network.mtu: 1279 is less than the 1280 that IPv6 needs, and fd00::/48 is a pool",
        ),
        (
            "[network]\nnode_cidrs = [\"10.0.0.0/24\"]\n".into(),
            "t.toml:2: network.node_cidrs: 10.0.0.0/24 is in none of network.pools",
        ),
        (
            "[network]\nnode_cidrs = [\"10.244.0.0/24\", \"10.244.0.0/25\"]\n".into(),
            "t.toml:2: network.node_cidrs: 10.244.0.0/25 overlaps 10.244.0.0/24",
        ),
        (
            format!("{node}{}", peer("n1", "172.31.0.2", "\"10.244.1.0/24\"")),
            "t.toml:7: peer[0].name: n1 is the name of another node",
        ),
        (
            format!("{node}{}", peer("n2", "172.31.0.1", "\"10.244.1.0/24\"")),
            "t.toml:8: peer[0].address: 172.31.0.1 is this node's own address",
        ),
        (
            format!("{node}{}", peer("n2", "224.0.0.1", "\"10.244.1.0/24\"")),
            "t.toml:8: peer[0].address: 224.0.0.1 can't be a node's address",
        ),
        (
            format!("{node}{}", peer("n2", "10.244.9.9", "\"10.244.1.0/24\"")),
            "t.toml:8: peer[0].address: 10.244.9.9 is inside the pool 10.244.0.0/16: pods and nodes need separate ranges",
        ),
        (
            format!("{node}{}", peer("n2", "172.31.0.2", "")),
            "t.toml:9: peer[0].pods: at least one range is needed: the peer's node_cidrs",
        ),
        (
            format!("{node}{}", peer("n2", "172.31.0.2", "\"10.0.0.0/24\"")),
            "t.toml:9: peer[0].pods: 10.0.0.0/24 is in none of network.pools",
        ),
        (
            format!("{node}{}", peer("n2", "172.31.0.2", "\"10.244.0.128/25\"")),
            "t.toml:9: peer[0].pods: 10.244.0.128/25 overlaps 10.244.0.0/24 of network.node_cidrs",
        ),
        (
            format!("{node}{}", peer("n2", "172.31.0.2", "\"10.244.1.0/24\", \"10.244.1.0/24\"")),
            "t.toml:9: peer[0].pods: 10.244.1.0/24 overlaps 10.244.1.0/24",
        ),
        (
            format!(
                "{node}{}{}",
                peer("n2", "172.31.0.2", "\"10.244.1.0/24\""),
                peer("n3", "172.31.0.3", "\"10.244.0.0/16\"")
            ),
            "t.toml:13: peer[1].pods: 10.244.0.0/16 overlaps 10.244.0.0/24 of network.node_cidrs",
        ),
        (
            format!(
                "{node}{}{}",
                peer("n2", "172.31.0.2", "\"10.244.1.0/24\""),
                peer("n3", "172.31.0.2", "\"10.244.2.0/24\"")
            ),
            "t.toml:12: peer[1].address: 172.31.0.2 is another peer's address",
        ),
        (
            format!(
                "{node}{}{}",
                peer("n2", "172.31.0.2", "\"10.244.1.0/24\""),
                peer("n2", "172.31.0.3", "\"10.244.2.0/24\"")
            ),
            "t.toml:11: peer[1].name: n2 is the name of another node",
        ),
        (
            format!(
                "{node}{}{}",
                peer("n2", "172.31.0.2", "\"10.244.1.0/24\""),
                peer("n3", "172.31.0.3", "\"10.244.1.128/25\"")
            ),
            "t.toml:13: peer[1].pods: 10.244.1.128/25 overlaps 10.244.1.0/24 of n2",
        ),
    ] {
        assert_eq!(error(&text), message);
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/t.toml")).unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/t.toml: No such file or directory (os error 2)");
}

#[test]
fn an_etcd_store_is_read() {
    let text = r#"
        [store]
        kind = "etcd"
        endpoints = ["https://etcd-1.example:2379", "http://[::1]:2379", "http://127.0.0.1:2379"]
        prefix = "/clusters/a"
        ca = "/etc/tapir/ca.pem"
        cert = "/etc/tapir/cert.pem"
        key = "/etc/tapir/key.pem"
        username = "tapir"
        password_file = "/etc/tapir/password"
    "#;
    let store = Config::parse(text, Path::new("t.toml")).unwrap().store;
    assert_eq!(store.kind, StoreKind::Etcd);
    let expected = etcd::Settings {
        endpoints: ["https://etcd-1.example:2379", "http://[::1]:2379", "http://127.0.0.1:2379"].map(Into::into).into(),
        prefix: "/clusters/a".into(),
        ca: Some("/etc/tapir/ca.pem".into()),
        identity: Some(("/etc/tapir/cert.pem".into(), "/etc/tapir/key.pem".into())),
        user: Some(("tapir".into(), "/etc/tapir/password".into())),
        ..etcd::Settings::default()
    };
    assert_eq!(store.etcd(), expected);
    let minimal = "[store]\nkind = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";
    assert_eq!(Config::parse(minimal, Path::new("t.toml")).unwrap().store.prefix, "/tapir/v1");
}

#[test]
fn a_kubernetes_store_is_read() {
    let store = |text: &str| Config::parse(text, Path::new("t.toml")).unwrap().store;
    let within = store("[store]\nkind = \"kubernetes\"\n");
    assert_eq!(
        (within.kind, within.kubernetes()),
        (StoreKind::Kubernetes, crate::cluster::kubernetes::Settings::default())
    );
    let beside =
        store("[store]\nkind = \"kubernetes\"\nkubeconfig = \"/etc/tapir/kubeconfig\"\nnamespace = \"net-1\"\n");
    let expected = crate::cluster::kubernetes::Settings {
        kubeconfig: Some("/etc/tapir/kubeconfig".into()),
        namespace: "net-1".into(),
        ..crate::cluster::kubernetes::Settings::default()
    };
    assert_eq!(beside.kubernetes(), expected);
    let kubernetes = |more: &str| error(&format!("[store]\nkind = \"kubernetes\"\n{more}\n"));
    for (found, message) in [
        (kubernetes("kubeconfig = \"k\""), "3: store.kubeconfig: k is not an absolute path"),
        (kubernetes("namespace = \"Net\""), "3: store.namespace: \"Net\" is not like tapir-system"),
        (kubernetes("namespace = \"\""), "3: store.namespace: \"\" is not like tapir-system"),
        (kubernetes("prefix = \"/x\""), "3: store.prefix: means something only with store.kind = \"etcd\""),
        (
            error("[store]\nkubeconfig = \"/k\"\n"),
            "2: store.kubeconfig: means something only with store.kind = \"kubernetes\" or kubernetes.source = \"on\"",
        ),
        (
            error("[store]\nkind = \"etcd\"\nendpoints = [\"http://e:2379\"]\nnamespace = \"n\"\n"),
            "4: store.namespace: means something only with store.kind = \"kubernetes\"",
        ),
        (
            kubernetes("[[peer]]\nname = \"a\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]"),
            "3: peer[0]: means something only with store.kind = \"embedded\": nodes that share a store find each other",
        ),
    ] {
        assert_eq!(found, format!("t.toml:{message}"));
    }
}

#[test]
fn a_store_that_cannot_be_meant_is_refused() {
    let etcd = |more: &str| error(&format!("[store]\nkind = \"etcd\"\nendpoints = [\"http://e:2379\"]\n{more}\n"));
    let tls = |more: &str| error(&format!("[store]\nkind = \"etcd\"\nendpoints = [\"https://e:2379\"]\n{more}\n"));
    for (found, message) in [
        (
            error("[store]\nkind = \"etcd\"\n"),
            "1: store.endpoints: at least one is needed, like \"http://127.0.0.1:2379\"",
        ),
        (
            error("[store]\nendpoints = [\"http://e:2379\"]\n"),
            "2: store.endpoints: means something only with store.kind = \"etcd\"",
        ),
        (error("[store]\nprefix = \"/x\"\n"), "2: store.prefix: means something only with store.kind = \"etcd\""),
        (etcd("prefix = \"/tapir/\""), "4: store.prefix: \"/tapir/\" is not like /tapir/v1"),
        (etcd("prefix = \"tapir\""), "4: store.prefix: \"tapir\" is not like /tapir/v1"),
        (etcd("prefix = \"\""), "4: store.prefix: \"\" is not like /tapir/v1"),
        (etcd("ca = \"/ca\""), "4: store.ca: is of no use without an endpoint that begins with https://"),
        (tls("ca = \"ca\""), "4: store.ca: ca is not an absolute path"),
        (tls("cert = \"/c\""), "4: store.cert: needs store.key beside it"),
        (tls("key = \"/k\""), "4: store.key: needs store.cert beside it"),
        (etcd("username = \"u\""), "4: store.username: needs store.password_file beside it"),
        (etcd("password_file = \"/p\""), "4: store.password_file: needs store.username beside it"),
        (etcd("username = \"\"\npassword_file = \"/p\""), "4: store.username: is empty"),
        (
            etcd("[[peer]]\nname = \"a\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]"),
            "4: peer[0]: means something only with store.kind = \"embedded\": nodes that share a store find each other",
        ),
    ] {
        assert_eq!(found, format!("t.toml:{message}"));
    }
    for endpoint in [
        "e:2379",
        "http://e",
        "http://:2379",
        "ftp://e:1",
        "http://e:0",
        "http://e:70000",
        "http://e:1/x",
        "http://[e]:1",
        "http://a b:1",
    ] {
        let message = error(&format!("[store]\nkind = \"etcd\"\nendpoints = [{endpoint:?}]\n"));
        assert_eq!(
            message,
            format!("t.toml:3: store.endpoints: {endpoint:?} is not like http://HOST:PORT or https://HOST:PORT")
        );
    }
    let twice = error("[store]\nkind = \"etcd\"\nendpoints = [\"http://e:1\", \"http://e:1\"]\n");
    assert_eq!(twice, "t.toml:3: store.endpoints: http://e:1 is named twice");
}

#[test]
fn services_and_connections_have_their_keys() {
    let text = r#"
        [node]
        labels = { "topology.kubernetes.io/zone" = "a" }
        [network]
        services = "kube-proxy"
        service_cidrs = ["10.96.0.1/16", "fd00:96::/112"]
        services_dir = "/srv"
        service_reset = true
        node_port_addresses = ["172.31.0.1/16"]
        nat = "host"
        nat_ports = "40000-50000"
        nat_mapping = "endpoint-independent"
        flows = 2048
        flows_per_pod = 1
    "#;
    let config = Config::parse(text, Path::new("t.toml")).unwrap();
    let network = &config.network;
    assert_eq!((network.services, network.nat), (Services::KubeProxy, Nat::Host));
    assert_eq!(network.service_cidrs[0].to_string(), "10.96.0.0/16");
    assert_eq!(network.node_port_addresses[0].to_string(), "172.31.0.0/16");
    assert_eq!((&network.nat_ports.0, network.nat_mapping), (&(40_000..=50_000), NatMapping::EndpointIndependent));
    assert_eq!(config.node.zone(), "a");
    let zone = Config::parse(&text.replace("[network]", "zone = \"b\"\n[network]"), Path::new("t.toml")).unwrap();
    assert_eq!(zone.node.zone(), "b");
    let overlapping = "pools = [\"10.0.0.0/8\"]\n";
    for services in ["kube-proxy", "off"] {
        let text = format!("[network]\nservices = \"{services}\"\n{overlapping}");
        assert!(Config::parse(&text, Path::new("t.toml")).is_ok(), "nothing is kept for services");
    }
}

#[test]
fn what_is_wrong_with_services_and_connections_is_named() {
    for (text, message) in [
        (
            "pools = [\"10.0.0.0/8\"]",
            "t.toml:1: network.service_cidrs: 10.96.0.0/12 overlaps the pool 10.0.0.0/8: pods and services need separate \
             ranges",
        ),
        (
            "services = \"iptables\"",
            "t.toml:2: network.services: unknown variant `iptables`, expected one of `native`, `kube-proxy`, `off`",
        ),
        (
            "service_cidrs = [\"10.96.0.0/12\", \"10.97.0.0/16\"]",
            "t.toml:2: network.service_cidrs: 10.97.0.0/16 overlaps 10.96.0.0/12",
        ),
        (
            "service_cidrs = [\"127.0.0.0/16\"]",
            "t.toml:2: network.service_cidrs: 127.0.0.0/16 overlaps 127.0.0.0/8, where no service can be",
        ),
        ("services_dir = \"services.d\"", "t.toml:2: network.services_dir: services.d is not an absolute path"),
        ("nat_ports = \"61000\"", "t.toml:2: network.nat_ports: \"61000\" is not like \"61000-65535\""),
        (
            "nat_ports = \"65535-61000\"",
            "t.toml:2: network.nat_ports: 65535-61000 is not a range of 64 ports or more, from 1024 on",
        ),
        (
            "nat_ports = \"1000-2000\"",
            "t.toml:2: network.nat_ports: 1000-2000 is not a range of 64 ports or more, from 1024 on",
        ),
        (
            "nat_ports = \"32767-40000\"",
            "t.toml:2: network.nat_ports: 32767-40000 overlaps 30000-32767, where node ports are",
        ),
        ("flows = 7", "t.toml:2: network.flows: 7 is not within 1024 to 67108864"),
        ("flows_per_pod = 0", "t.toml:2: network.flows_per_pod: 0 would let pods connect to nothing"),
    ] {
        assert_eq!(error(&format!("[network]\n{text}\n")), message);
    }
    assert_eq!(
        error("[node]\naddress = \"10.100.0.1\"\n"),
        "t.toml: network.service_cidrs: 10.96.0.0/12 holds 10.100.0.1, a node's address"
    );
    assert_eq!(error("[node]\nzone = \"a b\"\n"), "t.toml:2: node.zone: \"a b\" can't be the value of the label zone");
}

#[test]
fn ranges_of_node_objects_go_with_nothing_that_says_others() {
    let podcidr = |more: &str| error(&format!("[network]\nipam = \"podcidr\"\n{more}\n"));
    for (found, message) in [
        (podcidr("[kubernetes]\nsource = \"off\""), "2: network.ipam: \"podcidr\" needs kubernetes.source"),
        (
            podcidr("[store]\nkind = \"etcd\"\nendpoints = [\"http://e:2379\"]"),
            "2: network.ipam: \"podcidr\" needs store.kind",
        ),
        (podcidr("node_cidrs = [\"10.244.0.0/24\"]"), "3: network.node_cidrs: means nothing with"),
        (
            podcidr("[[peer]]\nname = \"a\"\naddress = \"172.31.0.2\"\npods = [\"10.244.1.0/24\"]"),
            "3: peer[0]: means nothing with",
        ),
    ] {
        assert!(found.starts_with(&format!("t.toml:{message}")), "{found}");
    }
    let config = |text: &str| Config::parse(text, Path::new("t.toml")).unwrap();
    assert!(config("[network]\nipam = \"podcidr\"\n").follows_kubernetes());
    assert!(!config("").follows_kubernetes());
    assert!(config("[kubernetes]\nsource = \"on\"\n").follows_kubernetes());
}
