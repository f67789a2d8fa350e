//! The shape of the source: who may import whom, where `unsafe`, `async` and clocks may stand, how long files get.
//!
//! The floors are read from the table in `src/lib.rs`, so there is one. Sources are read as tokens, not as text:
//! comments and strings don't count, what stands inside macro calls does, and modules under `#[cfg(test)]` don't.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A file may be this long before its tests begin: a budget, with room for the one that needs it.
const MAX_LINES: usize = 450;
/// Modules that may be asynchronous.
const ASYNC: [&str; 5] = ["source", "store", "cni", "api", "daemon"];
/// Folders of `src/` that are crates of their own.
const CRATES: [&str; 2] = ["src/sys/", "src/kube/"];
/// Modules that may speak to a Kubernetes API server.
const SPEAKS_KUBERNETES: [&str; 2] = ["store", "source"];
/// Modules that are functions of their arguments: no clock, no file, no socket, no thread.
const PURE: [&str; 9] = ["wire", "packet", "drop_reason", "flow", "table", "gso", "forward", "control", "cluster"];
/// What a pure module does not name.
const IMPURE: [&[&str]; 9] = [
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["std", "fs"],
    &["std", "thread"],
    &["std", "process"],
    &["std", "env"],
    &["rustix"],
    &["tracing"],
    &["crate", "sys"],
];
/// What stands before the name of a thing where it is declared.
const DECLARES: [&str; 9] = ["mod", "fn", "struct", "enum", "trait", "type", "const", "static", "let"];
/// Parts of names that say nothing.
const EMPTY_NAMES: [&str; 7] = ["manager", "helper", "helpers", "util", "utils", "misc", "stuff"];
/// What comments of finished work do not hold.
const UNFINISHED: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];

/// One breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Breach {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// The floor of each module, from the table in the crate's documentation.
#[derive(Debug)]
struct Floors(BTreeMap<String, u8>);

impl Floors {
    fn read(lib: &str) -> Self {
        let mut floors = BTreeMap::new();
        for line in lib.lines().filter_map(|line| line.strip_prefix("//! |")) {
            let mut cells = line.split('|').map(str::trim);
            let (Some(floor), Some(modules)) = (cells.next(), cells.next()) else { continue };
            let Ok(floor) = floor.parse() else { continue };
            for module in modules.split(',').map(|module| module.trim().trim_matches(['[', ']', '`'])) {
                floors.insert(module.to_owned(), floor);
            }
        }
        Self(floors)
    }

    fn of(&self, module: &str) -> Option<u8> {
        self.0.get(module).copied()
    }
}

/// What the walk through a file's tokens finds.
#[derive(Debug, Default)]
struct Findings {
    /// Every path, as its segments, with the line of its first.
    paths: Vec<(usize, Vec<String>)>,
    /// Every identifier, with its line.
    words: Vec<(usize, String)>,
    /// `.unwrap()`, by line.
    unwraps: Vec<usize>,
    /// `allow(unsafe_code)` and `expect(unsafe_code)`, by line.
    permissions: Vec<usize>,
    /// Where modules under `#[cfg(test)]` begin.
    first_test: Option<usize>,
}

impl Findings {
    /// Reads `source`, the module `module` (empty: the crate root).
    fn read(source: &str, module: &[String]) -> Result<Self, String> {
        let tokens: TokenStream = source.parse().map_err(|error| format!("no Rust tokens: {error}"))?;
        let mut findings = Self::default();
        findings.walk(&tokens.into_iter().collect::<Vec<_>>(), module);
        Ok(findings)
    }

    fn walk(&mut self, tokens: &[TokenTree], module: &[String]) {
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                let item = &tokens[at..at + item_length(&tokens[at..])];
                if item.iter().any(|token| matches!(token, TokenTree::Ident(word) if word == "mod")) {
                    self.first_test.get_or_insert(line(&tokens[at]));
                }
                at += item.len();
                continue;
            }
            match &tokens[at] {
                TokenTree::Ident(word) if word == "mod" => {
                    if let [_, TokenTree::Ident(name), TokenTree::Group(body), ..] = &tokens[at..] {
                        let inner = [module, &[name.to_string()]].concat();
                        self.words.extend([word, name].map(|word| (word.span().start().line, word.to_string())));
                        self.walk(&body.stream().into_iter().collect::<Vec<_>>(), &inner);
                        at += 3;
                    } else {
                        at += self.path(&tokens[at..], &mut Vec::new(), module);
                    }
                }
                TokenTree::Ident(_) => at += self.path(&tokens[at..], &mut Vec::new(), module),
                TokenTree::Group(group) => {
                    self.group(&tokens[..at], group, module);
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
            }
        }
    }

    fn group(&mut self, before: &[TokenTree], group: &proc_macro2::Group, module: &[String]) {
        let inside: Vec<_> = group.stream().into_iter().collect();
        if let [.., TokenTree::Punct(dot), TokenTree::Ident(name)] = before
            && dot.as_char() == '.'
            && name == "unwrap"
            && inside.is_empty()
        {
            self.unwraps.push(line(&before[before.len() - 1]));
        }
        if let [.., TokenTree::Ident(name)] = before
            && (name == "allow" || name == "expect")
            && inside.iter().any(|token| matches!(token, TokenTree::Ident(word) if word == "unsafe_code"))
        {
            self.permissions.push(line(&before[before.len() - 1]));
        }
        self.walk(&inside, module);
    }

    /// Takes the path that `tokens` start with, behind `prefix`, and each branch of its braces; returns how many
    /// tokens that took.
    fn path(&mut self, tokens: &[TokenTree], prefix: &mut Vec<String>, module: &[String]) -> usize {
        let depth = prefix.len();
        let mut at = 0;
        while let Some(TokenTree::Ident(word)) = tokens.get(at) {
            self.words.push((line(&tokens[at]), word.to_string()));
            prefix.push(word.to_string());
            if !is_double_colon(&tokens[at + 1..]) {
                at += 1;
                break;
            }
            at += 3;
            if let Some(TokenTree::Group(branches)) = tokens.get(at)
                && branches.delimiter() == Delimiter::Brace
            {
                self.branches(branches.stream(), prefix, module);
                prefix.truncate(depth);
                return at + 1;
            }
        }
        if prefix.len() > depth {
            self.paths.push((line(&tokens[0]), absolute(prefix, module)));
        }
        prefix.truncate(depth);
        at.max(1)
    }

    fn branches(&mut self, stream: TokenStream, prefix: &mut Vec<String>, module: &[String]) {
        let tokens: Vec<_> = stream.into_iter().collect();
        let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ',');
        for branch in tokens.split(is_comma).filter(|branch| !branch.is_empty()) {
            self.path(branch, prefix, module);
        }
    }
}

/// `crate`, `self` and `super` spelled out, so that every path of this crate begins with `crate`.
fn absolute(path: &[String], module: &[String]) -> Vec<String> {
    let mut base = module.to_vec();
    let mut rest = path;
    match rest.first().map(String::as_str) {
        Some("self") if rest.len() > 1 => rest = &rest[1..],
        Some("super") => {
            while let [first, tail @ ..] = rest
                && first == "super"
            {
                base.pop();
                rest = tail;
            }
        }
        _ => return path.to_vec(),
    }
    [&["crate".to_owned()], base.as_slice(), rest].concat()
}

fn line(token: &TokenTree) -> usize {
    token.span().start().line
}

fn is_double_colon(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [TokenTree::Punct(a), TokenTree::Punct(b), ..] if a.as_char() == ':' && b.as_char() == ':')
}

/// `#[cfg(test)]`, also as one of several conditions that must all hold.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else { return false };
    let text = attribute.stream().to_string().replace(' ', "");
    hash.as_char() == '#' && (text == "cfg(test)" || text.starts_with("cfg(all(test,"))
}

/// How many tokens the item takes whose attributes start here: to its braces, or its semicolon.
fn item_length(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |end| end + 1)
}

/// The module that a file below `src/` holds: `src/table/fib.rs` is `table::fib`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut segments: Vec<_> = path.split('/').map(ToOwned::to_owned).collect();
    if matches!(segments.last().map(String::as_str), Some("mod" | "lib")) {
        segments.pop();
    }
    segments
}

/// Checks one file. `file` is its path from the root of the repository.
fn check(file: &str, source: &str, floors: &Floors) -> Vec<Breach> {
    let module = if file.starts_with("src/") { module_of(file) } else { Vec::new() };
    let breach = |line: usize, rule: String| Breach { file: file.to_owned(), line, rule };
    let findings = match Findings::read(source, &module) {
        Ok(findings) => findings,
        Err(error) => return vec![breach(1, error)],
    };
    let mut breaches = Vec::new();
    let is_sys = file.starts_with("src/sys/");
    let top = module.first().map_or("", String::as_str);
    let is_crate = CRATES.iter().any(|folder| file.starts_with(folder));
    if file.starts_with("src/") && !is_crate && top != "bin" && !module.is_empty() {
        breaches.extend(imports(top, &findings, floors).into_iter().map(|(line, rule)| breach(line, rule)));
    }
    if !is_sys {
        let blocks = findings.words.iter().filter(|(_, word)| word == "unsafe");
        breaches.extend(blocks.map(|(line, _)| breach(*line, "unsafe outside src/sys".into())));
    }
    let permissions = findings.permissions.iter();
    breaches.extend(permissions.map(|line| breach(*line, "a lint against unsafe code is lifted".into())));
    if file.starts_with("src/") && !ASYNC.contains(&top) && top != "kube" {
        let is_async = |word: &str| matches!(word, "async" | "await" | "tokio");
        let words = findings.words.iter().filter(|(_, word)| is_async(word));
        breaches.extend(words.map(|(line, word)| breach(*line, format!("{word} outside cni, api and daemon"))));
    }
    if file.contains("src/") {
        breaches.extend(findings.unwraps.iter().map(|line| breach(*line, "unwrap() outside tests".into())));
    }
    let declared = findings.words.windows(2).filter(|pair| DECLARES.contains(&pair[0].1.as_str()));
    let declared = declared.map(|pair| (pair[1].0, &pair[1].1)).chain(module.iter().map(|name| (1, name)));
    for (line, name) in declared {
        if let Some(part) = parts(name).find(|part| EMPTY_NAMES.contains(&part.as_str())) {
            breaches.push(breach(line, format!("{name}: a name with {part:?} in it says nothing")));
        }
    }
    breaches.extend(text(source, findings.first_test).into_iter().map(|(line, rule)| breach(line, rule)));
    breaches.sort();
    breaches.dedup();
    breaches
}

/// Rules about what module `top` imports.
fn imports(top: &str, findings: &Findings, floors: &Floors) -> Vec<(usize, String)> {
    let mut breaches = Vec::new();
    let Some(own) = floors.of(top) else {
        return vec![(1, format!("{top} is not in the table of floors in src/lib.rs"))];
    };
    for (line, path) in &findings.paths {
        if PURE.contains(&top)
            && let Some(impure) = IMPURE.iter().find(|impure| names(path, impure))
        {
            breaches.push((*line, format!("{top} is pure, but names {}", impure.join("::"))));
        }
        if path.first().is_some_and(|first| first == "tapir_kube") && !SPEAKS_KUBERNETES.contains(&top) {
            breaches
                .push((*line, format!("{top} speaks to Kubernetes, which is for {}", SPEAKS_KUBERNETES.join(", "))));
        }
        let Some(target) = target(path) else { continue };
        if target == top {
            continue;
        }
        match floors.of(target) {
            None => breaches.push((*line, format!("crate::{target} is not in the table of floors in src/lib.rs"))),
            Some(floor) if floor >= own => {
                let rule = format!("{top} (floor {own}) imports {target} (floor {floor}): imports only go down");
                breaches.push((*line, rule));
            }
            Some(_) if own == top_floor(floors) && target == "control" && top != "daemon" => {
                breaches.push((*line, format!("{top} imports control: only daemon joins it with the outside")));
            }
            Some(_) => {}
        }
    }
    let line_of = |module| findings.paths.iter().find(|(_, path)| target(path) == Some(module)).map(|(line, _)| *line);
    if let (Some(_), Some(line)) = (line_of("forward"), line_of("io"))
        && top != "worker"
    {
        breaches.push((line, format!("{top} joins forward with io: only worker does")));
    }
    breaches
}

/// The module of this crate that a path leads into. The plugin's crate belongs to the floor of `cni`.
fn target(path: &[String]) -> Option<&str> {
    match path {
        [first, second, ..] if first == "crate" => Some(second),
        [first, ..] if first == "tapir_sys" => Some("sys"),
        _ => None,
    }
}

/// Whether the segments of `sought` stand side by side in `path`; at its start, when there is one of them.
fn names(path: &[String], sought: &[&str]) -> bool {
    match sought {
        [one] => path.first().is_some_and(|first| first == one),
        several => path.windows(several.len()).any(|window| window.iter().eq(several.iter())),
    }
}

fn top_floor(floors: &Floors) -> u8 {
    floors.0.values().copied().max().unwrap_or(0)
}

/// Rules about lines: length before the tests, unfinished work.
fn text(source: &str, first_test: Option<usize>) -> Vec<(usize, String)> {
    let lines = first_test.map_or(source.lines().count(), |line| line - 1);
    let mut breaches = Vec::new();
    if lines > MAX_LINES {
        breaches.push((MAX_LINES + 1, format!("{lines} lines before the tests; {MAX_LINES} are too many")));
    }
    for (number, line) in source.lines().enumerate() {
        let marks = line.split(|c: char| !c.is_ascii_alphanumeric());
        if let Some(mark) = marks.into_iter().find(|word| UNFINISHED.contains(word)) {
            breaches.push((number + 1, format!("{mark}: finish it, or open an issue")));
        }
    }
    breaches
}

/// The words of a name in either case: `TapManager`, `tap_manager`.
fn parts(name: &str) -> impl Iterator<Item = String> {
    let mut parts: Vec<String> = Vec::new();
    let mut previous = '_';
    for c in name.chars() {
        if c == '_' || (c.is_uppercase() && !previous.is_uppercase()) || parts.is_empty() {
            parts.push(String::new());
        }
        if c != '_' {
            parts.last_mut().expect("one was pushed").extend(c.to_lowercase());
        }
        previous = c;
    }
    parts.into_iter()
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Every source file of the crates, the benchmarks and the fuzz targets, by path from the root; but not the modules that
/// hold tests alone.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["src", "cni-shim/src", "benches", "fuzz"] {
        collect(&root().join(folder), &mut found);
    }
    found.sort();
    let name = |path: &Path| path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    found.iter().map(|path| (name(path), fs::read_to_string(path).expect("readable"))).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("readable").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !matches!(&*name, "target" | "tests") {
            collect(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

fn lib() -> String {
    fs::read_to_string(root().join("src/lib.rs")).expect("readable")
}

#[test]
fn the_source_keeps_to_its_floors() {
    let floors = Floors::read(&lib());
    let files = sources();
    assert!(files.len() > 30, "only {} files found", files.len());
    let breaches: Vec<_> = files.iter().flat_map(|(file, source)| check(file, source, &floors)).collect();
    let list: String = breaches.iter().map(|breach| format!("{breach}\n")).collect();
    assert!(breaches.is_empty(), "\n{list}");
}

#[test]
fn the_table_of_floors_names_every_module_once() {
    let lib = lib();
    let floors = Floors::read(&lib);
    let named: BTreeSet<_> = floors.0.keys().cloned().collect();
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let declared: BTreeSet<_> = declared.map(ToOwned::to_owned).chain(["sys".to_owned()]).collect();
    assert_eq!(named, declared);
    let rows = lib.lines().filter(|line| line.starts_with("//! | ")).map(|row| row.matches('[').count()).sum::<usize>();
    assert_eq!(rows, named.len(), "a module stands on two floors");
}

#[test]
fn crate_roots_forbid_or_deny_unsafe_code() {
    let has = |file: &str, attribute: &str| {
        let source = fs::read_to_string(root().join(file)).expect("readable");
        assert!(source.lines().any(|line| line == attribute), "{file} has no {attribute}");
    };
    has("src/lib.rs", "#![deny(unsafe_code)]");
    has("src/kube/lib.rs", "#![forbid(unsafe_code)]");
    has("cni-shim/src/lib.rs", "#![forbid(unsafe_code)]");
    has("cni-shim/src/main.rs", "#![forbid(unsafe_code)]");
}

/// Tests of the rules themselves, on sources that break them.
mod rules {
    use super::*;

    const LIB: &str = "\
//! | floor | modules | what |
//! |---|---|---|
//! | 0 | [`wire`], [`sys`] | bytes |
//! | 1 | [`packet`] | packets |
//! | 2 | [`table`] | tables |
//! | 3 | [`forward`], [`io`] | forwarding |
//! | 4 | [`worker`], [`control`] | the loop |
//! | 5 | [`host`], [`cni`], [`api`] | the outside |
//! | 6 | [`daemon`], [`ctl`] | wiring |
";

    fn rules(file: &str, source: &str) -> Vec<String> {
        check(file, source, &Floors::read(LIB))
            .iter()
            .map(|breach| format!("{}: {}", breach.line, breach.rule))
            .collect()
    }

    fn breaks(file: &str, source: &str, words: &str) {
        let rules = rules(file, source);
        assert!(rules.iter().any(|rule| rule.contains(words)), "{source:?} gives {rules:?}, not {words:?}");
    }

    fn keeps(file: &str, source: &str) {
        assert_eq!(rules(file, source), [""; 0], "{source:?}");
    }

    #[test]
    fn imports_only_go_down() {
        keeps("src/forward/mod.rs", "use crate::packet::Packet; use crate::table::{Tables, PortId};");
        keeps("src/table/mod.rs", "mod fib; use self::fib::Fib; use crate::table::port; use super::packet::Packet;");
        breaks("src/packet.rs", "use crate::table::Tables;", "1: packet (floor 1) imports table (floor 2)");
        breaks("src/forward/mod.rs", "fn f() {\n crate::io::memory(); }", "2: forward (floor 3) imports io (floor 3)");
        breaks("src/host/mod.rs", "use crate::{table::Tables, cni::Server};", "host (floor 5) imports cni (floor 5)");
        breaks("src/table/fib.rs", "use super::super::forward::forward;", "table (floor 2) imports forward");
        breaks("src/table/mod.rs", "mod inner { use super::super::io::Queue; }", "table (floor 2) imports io");
        breaks("src/table/fib.rs", "fn f() { info!(x = crate::host::name()); }", "imports host (floor 5)");
        breaks("src/wire/mod.rs", "use tapir_sys::tap;", "wire (floor 0) imports sys (floor 0)");
        breaks("src/table/mod.rs", "use crate::unheard::Of;", "crate::unheard is not in the table");
        breaks("src/stray.rs", "", "stray is not in the table");
        breaks("src/cni.rs", "use tapir_kube::Client;", "1: cni speaks to Kubernetes");
        keeps("src/kube/client.rs", "async fn f() { tokio::spawn(g()).await }");
    }

    #[test]
    fn tests_and_comments_may_name_anything() {
        keeps(
            "src/packet.rs",
            "/// See [`crate::table`].\n// use crate::table;\nfn f() -> &'static str { \"crate::table\" }",
        );
        keeps("src/packet.rs", "#[cfg(test)]\nmod tests { use crate::table::Tables; fn f() { x.unwrap(); } }");
        breaks("src/packet.rs", "#[cfg(test)] mod tests {} use crate::table::Tables;", "imports table");
        keeps("src/bin/tapird.rs", "fn main() { tapir::daemon::run() }");
    }

    #[test]
    fn only_worker_and_daemon_join() {
        keeps("src/worker.rs", "use crate::forward::forward; use crate::io::Queue;");
        breaks(
            "src/daemon.rs",
            "use crate::forward::forward;\nuse crate::io::Queue;",
            "2: daemon joins forward with io",
        );
        keeps("src/daemon.rs", "use crate::{control::State, host::Links};");
        keeps("src/api/mod.rs", "use crate::control::State;");
        breaks("src/ctl/mod.rs", "use crate::control::State;", "ctl imports control");
        breaks("src/control/mod.rs", "use crate::host::Links;", "control (floor 4) imports host");
    }

    #[test]
    fn unsafe_stays_in_sys() {
        keeps("src/sys/tap.rs", "fn f() { unsafe { g() } }");
        breaks("src/io/tap.rs", "fn f() {\nunsafe { g() } }", "2: unsafe outside src/sys");
        breaks("cni-shim/src/lib.rs", "unsafe impl Send for X {}", "unsafe outside src/sys");
        breaks("src/io/tap.rs", "#[allow(unsafe_code)] fn f() {}", "lifted");
        breaks("src/lib.rs", "#![expect(dead_code, unsafe_code)]", "lifted");
        keeps("src/lib.rs", "#![deny(unsafe_code)]");
    }

    #[test]
    fn the_packet_path_does_not_wait() {
        keeps("src/api/http.rs", "async fn f() { g().await }");
        breaks("src/worker.rs", "async fn f() {}", "async outside");
        breaks("src/host/mod.rs", "use tokio::time;", "tokio outside");
        breaks("src/bin/tapird.rs", "fn main() { f().await }", "await outside");
    }

    #[test]
    fn pure_modules_read_no_clock_and_touch_no_file() {
        keeps("src/control/mod.rs", "use std::time::{Duration, Instant}; fn f(now: Instant) {}");
        breaks("src/control/mod.rs", "fn f() { let t = std::time::Instant::now(); }", "names Instant::now");
        breaks("src/forward/mod.rs", "use std::{fmt, fs};", "names std::fs");
        breaks("src/table/mod.rs", "fn f() { tracing::info!(\"x\") }", "names tracing");
        keeps("src/worker.rs", "fn f() { std::time::Instant::now(); }");
    }

    #[test]
    fn failures_are_values() {
        breaks("src/packet.rs", "fn f() {\n\n x.y().unwrap(); }", "3: unwrap() outside tests");
        keeps("src/packet.rs", "fn f() { x.unwrap_or(1); y.expect(\"why\"); unwrap(); }");
        breaks("src/packet.rs", "fn f() { vec![x.unwrap()]; }", "unwrap() outside tests");
    }

    #[test]
    fn names_say_something() {
        breaks("src/packet.rs", "struct TapManager;", "\"manager\"");
        breaks("src/packet.rs", "mod net_util;", "\"util\"");
        breaks("src/packet.rs", "mod misc { }", "\"misc\"");
        breaks("src/wire/helpers.rs", "", "\"helpers\"");
        keeps("src/packet.rs", "use crossbeam_utils::CachePadded; fn utility(management: u8) {}");
        breaks("src/packet.rs", "fn f() {}\n// TODO: more", "2: TODO");
    }

    #[test]
    fn files_stay_short_before_their_tests() {
        let long = "fn f() {}\n".repeat(MAX_LINES);
        keeps("src/packet.rs", &long);
        breaks("src/packet.rs", &format!("{long}fn g() {{}}\n"), "451 lines before the tests");
        keeps("src/packet.rs", &format!("{long}#[cfg(test)]\nmod tests {{}}\nfn g() {{}}\n"));
    }
}
