//! The kernel behaviours that tapir relies on, one small program each. A failure names a kernel that behaves
//! otherwise, and each module says at its head which of our files counts on it.
//!
//! `queues` then drives our own queues on such devices.
//!
//! They need root and `/dev/net/tun`, and run in network namespaces of their own.

mod namespace;
mod node;
mod packets;
mod translator;

mod address_takes_its_routes_along;
mod carrier_tells_an_open_queue;
mod fanout_reassembles;
mod flows_meet_on_one_queue;
mod gso_tunnel;
mod gso_underlays;
mod hdr_len_is_a_hint;
mod host_masquerades;
mod icmp_errors_are_taken_from_anybody;
mod path_mtu_is_ours_to_keep;
mod pending_error_fails_an_innocent_send;
mod persist_off_removes_the_device_elsewhere;
mod persistent_tap_takes_a_queue_again;
mod programs_outlive_the_process;
mod pushed_header_is_cut_by_the_kernel;
mod queue_opened_inside_pins_the_namespace;
mod queue_opened_outside_makes_another_device;
mod queue_tells_its_devices_namespace;
mod queues;
mod quiet_raw_socket_hears_errors;
mod raw_shares;
mod raw_socket_hears_merged_frames;
mod raw_socket_hears_udp;
mod raw_socket_silences_protocol_unreachable;
mod raw_socket_tells_icmp_errors;
mod redirected_datagrams;
mod redirected_loopback_needs_two_settings;
mod redirected_packets_keep_their_shape;
mod removed_tap_wakes_its_reader;
mod sent_header_is_completed;
mod tables_change_under_load;
mod tap_remembers_offloads;
mod tcx_programs_live_side_by_side;
mod udp_tunnel;
mod write_to_a_tap_that_is_down;
