# shellcheck shell=bash
# What the scripts of this folder share; sourced after `set -euo pipefail`.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # read by those who source this
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")

say() { printf '%s\n' "$*" >&2; }
die() {
  say "${0##*/}: $*"
  exit 1
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root or sudo"
  fi
}

# Namespaces, TAPs and raw sockets need root: starts the calling script again as root, with the same arguments.
become_root() {
  ((EUID == 0)) && return
  command -v sudo >/dev/null || die "this needs root or sudo"
  exec sudo --preserve-env=TAPIR_LAB,TAPIR_WORKERS,TAPIR_BACKEND,CARGO_TARGET_DIR,TERM "$0" "$@"
}

# need COMMAND PACKAGE: remembers PACKAGE for install_missing unless COMMAND is there.
missing_packages=()
need() {
  PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null || missing_packages+=("$2")
}

# Installs what need() found missing. When nothing is missing it touches no network.
install_missing() {
  ((${#missing_packages[@]})) || return 0
  command -v apt-get >/dev/null || die "please install: ${missing_packages[*]} (no apt-get here to do it)"
  say "Installing ${missing_packages[*]}"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
  as_root "${apt[@]}" update >&2 || say "apt-get update failed; trying with the package lists that are there"
  as_root "${apt[@]}" install -y --no-install-recommends "${missing_packages[@]}" >&2 ||
    die "could not install ${missing_packages[*]}; install them by hand and run this again"
  missing_packages=()
}

# What building needs.
need_to_build() {
  need cc gcc # the linker of the Rust toolchain; brings libc6-dev, whose libc.a makes the plugin static
  need protoc protobuf-compiler # reads etcd's interface, with the files that it includes
  [[ -e /usr/include/google/protobuf/descriptor.proto ]] || missing_packages+=(libprotobuf-dev)
  command -v cargo >/dev/null || die "Rust is missing: see https://rustup.rs, then run this again"
}

# What a lab and its measurements need.
need_for_lab() {
  need ip iproute2         # namespaces, links, routes
  need ping iputils-ping   # reachability, round trips, path MTU
  need iperf3 iperf3       # throughput
  need ethtool ethtool     # offloads of the underlay (lab up --cut)
  need setsid util-linux   # daemons that outlive the terminal
  need sysctl procps       # forwarding in the kernel's yardsticks
}

# What scripts/bench needs beside a lab.
need_for_bench() {
  need python3 python3        # the program itself
  need ss iproute2            # whether servers listen
}

# The peers of scripts/bench. One that can't be had is left out of the table, with the reason.
install_peers() {
  need ovs-vswitchd openvswitch-switch
  need wireguard-go wireguard-go
  need wg wireguard-tools
  need /usr/lib/cni/bridge containernetworking-plugins
  (install_missing) || say "going on without them"
  missing_packages=()
}

# median NUMBER…
median() {
  printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# ratio A B: A/B with two digits, or a dash when B is nothing.
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else print "-" }'; }

# iperf3_serve NETNS: a server in the background; it ends with the lab, or when killed.
iperf3_serve() {
  setsid ip netns exec "$1" iperf3 --server >/dev/null 2>&1 </dev/null &
  disown
  local _
  for _ in {1..50}; do
    [[ -n $(ip netns exec "$1" ss -Hltn 'sport = :5201') ]] && return
    sleep 0.1
  done
  die "iperf3 did not start in $1"
}

# throughput NETNS ADDRESS SECONDS: Gbit/s that one TCP flow delivers. Congestion control is named, since the
# machine's default may be one that paces itself (BBR).
throughput() {
  local output _
  for _ in {1..10}; do
    output=$(ip netns exec "$1" iperf3 --client "$2" --time "$3" --congestion cubic --connect-timeout 3000 --format m 2>&1) &&
      awk '/receiver/ { gbit = $(NF - 2) / 1000 } END { if (!gbit) exit 1; printf "%.2f\n", gbit }' <<<"$output" &&
      return
    # A server is busy for a moment after it has served.
    [[ $output == *busy* ]] || break
    sleep 0.2
  done
  say "$output"
  return 1
}

# round_trip NETNS ADDRESS: median round trip in ms of ten pings, all of which must be answered.
round_trip() {
  local output
  output=$(ip netns exec "$1" ping -n -c 10 -i 0.05 -W 1 "$2") && [[ $output == *" 0% packet loss"* ]] || return 1
  # shellcheck disable=SC2046  # one word for each answer
  median $(sed -n 's/.*time=\([0-9.]*\) ms/\1/p' <<<"$output")
}
