//! The table at the end: what Criterion has measured, read from its files.
#![allow(dead_code, clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::PathBuf;

fn results() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    PathBuf::from(target).join("criterion")
}

/// The median of a benchmark in nanoseconds, if it has been measured.
pub fn median(name: &str) -> Option<f64> {
    let file = std::fs::read(results().join(name).join("new/estimates.json")).ok()?;
    let estimates: serde_json::Value = serde_json::from_slice(&file).ok()?;
    estimates["median"]["point_estimate"].as_f64()
}

/// A line for each group that has one of `sizes`: nanoseconds, and how many times those of the first size.
pub fn print_sizes(sizes: &[&str]) {
    let entries = std::fs::read_dir(results()).into_iter().flatten().flatten();
    let groups: BTreeSet<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let header: String = sizes.iter().map(|size| format!("{size:>9}")).collect();
    println!("{:<40}{header}   ns{header}   times the first", "");
    for group in groups {
        let medians: Vec<_> = sizes.iter().map(|size| median(&format!("{group}/{size}"))).collect();
        let Some(first) = medians[0] else { continue };
        let cell = |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
        let times: String = medians.iter().map(|&median| format!("{:>9}", cell(median, 1))).collect();
        let ratios: String =
            medians.iter().map(|median| format!("{:>9}", cell(median.map(|m| m / first), 2))).collect();
        println!("{group:<40}{times}     {ratios}");
    }
}
