//! Tables as kubectl prints them: no borders, headers in capitals, numbers to the right; and units for people.

use comfy_table::{CellAlignment, Table, presets};

/// The head of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Aligned to the left.
    Text(&'static str),
    /// Aligned to the right.
    Number(&'static str),
}

impl Column {
    const fn title(self) -> &'static str {
        match self {
            Self::Text(title) | Self::Number(title) => title,
        }
    }
}

/// Lays rows out under their headers, one line a row, each line ended.
pub fn grid(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| column.title()));
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    for (column, layout) in columns.iter().zip(table.column_iter_mut()) {
        layout.set_padding((0, 3));
        if matches!(column, Column::Number(_)) {
            layout.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

/// `name: value` lines, the values aligned.
pub fn fields<'a>(rows: &[(&'a str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let line = |(name, value): &(&'a str, String)| format!("{:width$}  {}\n", format!("{name}:"), visible(value));
    rows.iter().map(line).collect()
}

/// `text` on one line and without what steers a terminal: names come from outside. Empty becomes `-`.
pub fn visible(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Several values in one cell.
pub fn list(values: impl IntoIterator<Item = impl ToString>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

/// As in `ls -h`: one digit behind the point below ten.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// A number that may be as large as IPv6 is: exact below a million.
pub fn count(n: f64) -> String {
    if n < 1e6 { format!("{n:.0}") } else { format!("{n:.1e}") }
}

/// A round trip.
pub fn micros(us: u64) -> String {
    scaled(us as f64, 1000.0, &["µs", "ms", "s"])
}

/// Seconds, as kubectl shows ages: the two largest units at most.
pub fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{minutes_total}m", minutes_total = seconds / 60),
        7_200..86_400 => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// A share from 0 to 1.
pub fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn scaled(n: f64, step: f64, units: &[&str]) -> String {
    let mut n = n;
    let mut units = units.iter();
    let mut unit = units.next().expect("callers name units");
    let mut whole = true;
    while n >= step {
        let Some(larger) = units.next() else { break };
        (n, unit, whole) = (n / step, larger, false);
    }
    if whole || n >= 10.0 { format!("{n:.0} {unit}") } else { format!("{n:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_lines_end_clean() {
        let columns = [Column::Text("NAME"), Column::Number("N"), Column::Text("LAST")];
        let rows = [vec!["a".into(), "5".into(), "".into()], vec!["longer".into(), "1234".into(), "x".into()]];
        assert_eq!(grid(&columns, rows), "NAME        N   LAST\na           5   -\nlonger   1234   x\n");
        assert_eq!(grid(&columns, []), "NAME   N   LAST\n");
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(visible("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn units_are_for_people() {
        let shown: Vec<_> = [0, 1023, 1024, 1536, 10 << 20, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 MiB", "16 EiB"]);
        assert_eq!([0, 412, 1_240, 25_000, 3_000_000].map(micros), ["0 µs", "412 µs", "1.2 ms", "25 ms", "3.0 s"]);
        assert_eq!([0, 119, 120, 7_260, 90_000].map(age), ["0s", "119s", "2m", "2h1m", "1d1h"]);
        assert_eq!([0.0, 0.125, 1.0].map(percent), ["0%", "12%", "100%"]);
        assert_eq!([64.0, 65_536.0, 2f64.powi(80)].map(count), ["64", "65536", "1.2e24"]);
    }
}
