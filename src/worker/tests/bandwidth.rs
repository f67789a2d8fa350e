//! Pods with limits, on a clock of the test's own.

use super::*;
use crate::gso;
use crate::table::Rate;

/// Any time will do.
const START: Duration = Duration::from_secs(1000);

fn rate(bits_per_second: u64) -> Option<Rate> {
    Some(Rate { bits_per_second, ..Rate::default() })
}

fn limited(id: PortId, limits: Limits) -> Node {
    let mut tables = tables();
    tables.ports[id.index()].as_mut().expect("a pod").limits = limits;
    Node::with(tables)
}

/// A packet from one pod to another, whole or, if that takes several, to be cut at 1440.
fn sized(payload: usize) -> Packet {
    if payload <= 1440 {
        return frame(A, &Ip::new(A_IP, B_IP).with(&vec![0; payload]));
    }
    let mut packet = super_frame(A, A_IP, B_IP);
    let header = Ip { protocol: TCP, ..Ip::new(A_IP, B_IP) };
    let mut segment = packet.network()[20..40].to_vec();
    segment.resize(20 + payload, 0);
    let offload = packet.offload;
    packet = frame(A, &header.with(&segment));
    packet.offload = offload;
    packet
}

impl Node {
    /// What a worker does until there is nothing to do before a later time.
    fn run(&mut self, mut now: Duration) {
        // What is put off for others to come first is not put off for long.
        let until = now + Duration::from_micros(10);
        loop {
            self.forwarder.tick(now, &mut Vec::new());
            for port in [A, B] {
                while !self.forwarder.is_paused(only(port))
                    && self.forwarder.visit(only(port), now).expect("alive") == Readiness::More
                {}
            }
            match self.forwarder.due() {
                Some(due) if due <= until => now = now.max(due),
                _ => return,
            }
        }
    }

    /// Puts a copy of a packet in.
    fn deliver(&self, packet: &Packet) {
        let mut copy = self.far(A).spare();
        copy.fill(packet.bytes(), packet.link().len());
        copy.offload = packet.offload;
        self.far(A).deliver(copy);
    }

    /// Takes what was sent to a port; its bytes on the wire.
    fn taken(&self, port: PortId) -> u64 {
        let packets = std::iter::from_fn(|| self.far(port).take());
        let bytes = packets.map(|packet| {
            let bytes = gso::on_wire(&packet).1;
            self.far(port).give(packet);
            bytes
        });
        bytes.sum()
    }
}

/// Delivered bytes may differ from the rate by 3 %, the burst, and the debt of one packet.
fn check_delivered(bytes: u64, rate: &Rate, time: Duration, packet: u64) {
    let wanted = rate.bits_per_second as f64 / 8.0 * time.as_secs_f64();
    let burst = (rate.burst as f64 / 8.0).max(rate.bits_per_second as f64 / 8.0 / 100.0);
    let off = bytes as f64 - wanted;
    assert!(
        -0.03 * wanted - packet as f64 <= off && off <= 0.03 * wanted + burst + packet as f64,
        "{bytes} bytes, not {wanted} within 3 %, in packets of {packet}, at {rate:?}"
    );
}

/// Rates from 1 Mbit/s to 10 Gbit/s, evenly over the orders of magnitude, with packets that a test can send so many of.
fn rates_and_payloads() -> impl Strategy<Value = (u64, usize)> {
    (6.0..=10.0_f64).prop_flat_map(|magnitude| {
        let rate = 10_f64.powf(magnitude) as u64;
        let least = if rate > 2_000_000_000 { 20_000 } else { (rate / 2_000_000) as usize };
        (Just(rate), prop_oneof![least.min(1400)..1440_usize, 20_000..60_000_usize].prop_map(move |p| p.max(least)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// More is offered than may come, at a worker that wakes up now and then.
    #[test]
    fn to_a_pod_comes_what_its_rate_allows(
        (bits_per_second, payload) in rates_and_payloads(),
        burst_ms in prop_oneof![Just(0), 4..100_u64],
        sleeps in prop::collection::vec(100..3_000_u64, 1..20),
    ) {
        let limit = Rate { bits_per_second, burst: bits_per_second / 1000 * burst_ms, packets_per_second: 0 };
        let mut node = limited(B, Limits { ingress: Some(limit), egress: None });
        let packet = sized(payload);
        let (_, load) = gso::on_wire(&packet);
        let (mut now, mut offered, mut delivered) = (START, 0.0, 0);
        for sleep in sleeps.iter().cycle() {
            let passed = now - START;
            if passed >= Duration::from_secs(1) {
                break;
            }
            while offered < 1.3 * bits_per_second as f64 / 8.0 * passed.as_secs_f64() + load as f64 {
                node.deliver(&packet);
                offered += load as f64;
            }
            node.run(now);
            delivered += node.taken(B);
            now += Duration::from_micros(*sleep);
        }
        node.run(now);
        delivered += node.taken(B);
        check_delivered(delivered, &limit, now - START, load);
        node.check_books();
        prop_assert!(node.drops().iter().all(|(reason, _)| *reason == DropReason::Bandwidth));
        node.forwarder.remove(B);
        prop_assert_eq!(node.forwarder.waiting(), 0);
        node.check_books();
    }

    /// The pod has always more to send; nothing of it is lost.
    #[test]
    fn from_a_pod_comes_what_its_rate_allows(
        (bits_per_second, payload) in rates_and_payloads(),
        lateness in prop::collection::vec(0..3_000_u64, 1..20),
    ) {
        let limit = Rate { bits_per_second, ..Rate::default() };
        let mut node = limited(A, Limits { ingress: None, egress: Some(limit) });
        let packet = sized(payload);
        let (_, load) = gso::on_wire(&packet);
        let (mut now, mut offered, mut delivered) = (START, 0, 0);
        for late in lateness.iter().cycle() {
            let passed = now - START;
            if passed >= Duration::from_secs(1) {
                break;
            }
            while offered < delivered + bits_per_second / 8 / 50 + 2 * load {
                node.deliver(&packet);
                offered += load;
            }
            node.run(now);
            delivered += node.taken(B);
            prop_assert!(node.forwarder.is_paused(only(A)));
            let due = node.forwarder.due().expect("it has more to send");
            prop_assert!(due > now, "a worker would not sleep");
            now = due + Duration::from_micros(*late);
        }
        node.run(now);
        delivered += node.taken(B);
        check_delivered(delivered, &limit, now - START, load);
        prop_assert_eq!(node.drops(), []);
        node.check_books();
    }
}

#[test]
fn a_super_frame_counts_as_its_segments() {
    let packet = sized(43_200);
    assert_eq!(gso::on_wire(&packet), (30, 43_200 + 30 * 40));
    assert_eq!(gso::on_wire(&sized(100)), (1, 128 - 8));
    let mut forged = sized(43_200);
    forged.offload.gso_size = 0;
    assert_eq!(gso::on_wire(&forged), (1, 43_240));
}

#[test]
fn what_waits_keeps_its_order_and_its_offloads() {
    let mut node = limited(B, Limits { ingress: rate(1_000_000), egress: None });
    let payloads = [1000, 20_000, 40, 30_000, 1440, 1];
    payloads.iter().for_each(|payload| node.far(A).deliver(sized(*payload)));
    node.run(START);
    let mut arrived = node.sent(B);
    assert!(arrived.len() < 3 && node.forwarder.waiting() == payloads.len() - arrived.len());
    node.check_books();
    let mut now = START;
    while let Some(due) = node.forwarder.due() {
        assert!(due > now);
        now = due;
        node.run(now);
        arrived.extend(node.sent(B));
    }
    assert_eq!(arrived.len(), payloads.len());
    for (packet, payload) in arrived.iter().zip(payloads) {
        let sent = sized(payload);
        assert_eq!((packet.network()[20..].len(), packet.offload), (sent.network()[20..].len(), sent.offload));
        assert_eq!(packet.link()[..6], mac(B));
    }
    assert_eq!(node.drops(), []);
    node.check_books();
}

#[test]
fn a_backlog_is_bounded_whatever_it_is_made_of() {
    for payload in [1, 1440, 60_000] {
        let mut node = limited(B, Limits { ingress: rate(1_000_000), egress: None });
        for _ in 0..4000 {
            node.far(A).deliver(sized(payload));
        }
        node.run(START);
        let (waiting, passed) = (node.forwarder.waiting(), node.sent(B).len());
        assert!(waiting > 0 && waiting * (payload + 34) <= 128 << 10, "{waiting} of {payload}");
        assert_eq!(node.drops(), [(DropReason::Bandwidth, 4000 - (waiting + passed) as u64)]);
        assert_eq!(node.counters(B).drops[DropReason::Bandwidth as usize].get(), node.drops()[0].1);
        node.check_books();
    }
}

#[test]
fn others_go_on_while_a_pod_waits() {
    let limits = Limits { ingress: rate(1_000_000), egress: rate(1_000_000) };
    let mut node = limited(A, limits);
    for _ in 0..1000 {
        node.far(A).deliver(sized(1440));
        node.far(B).deliver(frame(B, &Ip::new(B_IP, DIRECT).with(&[0; 1440])));
    }
    node.run(START);
    assert!(node.forwarder.is_paused(only(A)) && !node.forwarder.is_paused(only(B)));
    assert_eq!(node.sent(PortId::HOST).len(), 1000);
    assert!(node.sent(B).len() < 3);
    // Its questions are answered, however much waits for it.
    node.far(B).deliver(frame(B, &Ip::new(B_IP, A_IP).with(&[0; 1440])));
    node.run(START);
    node.run(START + Duration::from_secs(100));
    node.check_books();
}

#[test]
fn answers_to_a_pods_own_questions_do_not_wait() {
    let mut node = limited(A, Limits { ingress: rate(1_000_000), egress: None });
    for _ in 0..100 {
        node.far(B).deliver(frame(B, &Ip::new(B_IP, A_IP).with(&[0; 1440])));
    }
    node.run(START);
    node.sent(A);
    node.far(A).deliver(arp(A, A_IP, Ipv4Addr::new(169, 254, 1, 1)));
    node.run(START);
    assert_eq!(node.sent(A).len(), 1);
    assert!(node.forwarder.waiting() > 0);
}

#[test]
fn a_limit_that_is_lifted_holds_nothing_back() {
    let publisher = Publisher::default();
    let mut of_both = tables();
    of_both.ports[A.index()].as_mut().unwrap().limits.egress = rate(1_000_000);
    of_both.ports[B.index()].as_mut().unwrap().limits.ingress = rate(1_000_000);
    let mut node = Node::on(publisher.clone(), of_both);
    (0..200).for_each(|_| node.far(A).deliver(sized(1440)));
    node.run(START);
    assert!(node.forwarder.is_paused(only(A)));
    publisher.publish(tables());
    // Whoever is visited next sees the new tables; the rest follows when it is due.
    node.forwarder.visit(only(B), START).unwrap();
    let later = node.forwarder.due().expect("the queue is out of the poll") + Duration::from_millis(20);
    node.run(later);
    assert_eq!((node.forwarder.is_paused(only(A)), node.forwarder.waiting()), (false, 0));
    node.run(later);
    assert_eq!(node.forwarder.due(), None);
    assert_eq!(node.stats.received.get(), 200);
    node.check_books();
}

#[test]
fn a_port_that_goes_takes_what_waits_for_it_along() {
    let mut node = limited(B, Limits { ingress: rate(1_000_000), egress: None });
    (0..20).for_each(|_| node.far(A).deliver(sized(1440)));
    node.run(START);
    let waiting = node.forwarder.waiting() as u64;
    node.forwarder.remove(B);
    assert_eq!(node.drops(), [(DropReason::PortDown, waiting)]);
    assert_eq!((node.forwarder.due(), node.forwarder.waiting()), (None, 0));
    node.check_books();
}

#[test]
fn a_worker_sleeps_until_the_pod_may_send_again() {
    let publisher = Publisher::default();
    let mut tables = tables();
    tables.ports[A.index()].as_mut().unwrap().limits.egress = rate(8_000_000);
    tables.ports[B.index()].as_mut().unwrap().limits.ingress = rate(16_000_000);
    publisher.publish(tables);
    let mut workers = Workers::spawn(2, &publisher, &Default::default(), || |_| {}).unwrap();
    let (mut counters_a, mut counters_b) = (PortStats::default(), PortStats::default());
    let ((queues_a, far_a), (queues_b, far_b)) = (device(2), device(2));
    let start = Instant::now();
    workers.add_port(A, queues_a, &mut counters_a).unwrap();
    workers.add_port(B, queues_b, &mut counters_b).unwrap();
    // By both workers, which share what the pod has.
    (0..200).for_each(|number| far_a[number % 2].deliver(sized(1000 - 28 + 8)));
    let arrived = |fars: &[Far]| fars.iter().map(|far| std::iter::from_fn(|| far.take()).count()).sum::<usize>();
    let mut total = 0;
    while total < 200 {
        total += arrived(&far_b);
        assert!(start.elapsed() < PATIENCE, "{total} of 200 have come");
        std::thread::sleep(Duration::from_millis(1));
    }
    // 200,000 bytes at 1 MB a second, less what the bucket has and the debt of each worker.
    assert!(start.elapsed() >= Duration::from_millis(185), "{:?}", start.elapsed());
    assert_eq!(sum(&workers, |stats| stats.drops.iter().map(crate::stats::Counter::get).sum()), 0);
}
