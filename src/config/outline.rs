//! Where which key stands in a TOML file, for messages that name both.
//!
//! The parser tells byte offsets, validation tells keys; people want lines and keys. The outline has the lines on
//! which a table or a key begins. It does not understand inline tables and quoted keys: then the line or the key
//! around them is named.

/// Keys of later versions, which a config written for one of them holds.
const LATER_KEYS: &[&str] = &["bgp", "network.policy_dir"];

/// The keys of a file, in order.
#[derive(Debug)]
pub struct Outline {
    /// Byte offset of each line.
    lines: Vec<usize>,
    /// Line number, from 0, and key.
    keys: Vec<(usize, String)>,
}

impl Outline {
    /// Looks through a file.
    pub fn of(text: &str) -> Self {
        let mut outline = Self { lines: Vec::new(), keys: Vec::new() };
        let mut table = String::new();
        let mut offset = 0;
        for (number, line) in text.split_inclusive('\n').enumerate() {
            outline.lines.push(offset);
            offset += line.len();
            if let Some(name) = header(line, "[[", "]]") {
                let element = format!("{name}[");
                let count = outline.keys.iter().filter(|(_, key)| key.starts_with(&element) && key.ends_with(']'));
                table = format!("{element}{}]", count.count());
                outline.keys.push((number, table.clone()));
            } else if let Some(name) = header(line, "[", "]") {
                table = name.to_owned();
                outline.keys.push((number, table.clone()));
            } else if let Some(key) = key(line) {
                let key = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
                outline.keys.push((number, key));
            }
        }
        outline
    }

    /// The line, counted from 1, and the key at a byte offset.
    pub fn locate(&self, offset: usize) -> (usize, String) {
        let line = self.lines.partition_point(|&start| start <= offset).saturating_sub(1);
        let key = self.keys.iter().rev().find(|(start, _)| *start <= line).map(|(_, key)| key.clone());
        (line + 1, key.unwrap_or_default())
    }

    /// The line, counted from 1, of a key, or of what is around it.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        let line = |key: &str| self.keys.iter().find(|(_, other)| other == key).map(|(line, _)| line + 1);
        line(key).or_else(|| key.rsplit_once(['.', '[']).and_then(|(around, _)| self.line_of(around)))
    }
}

/// The parser's message about `key`, in words that lead on.
pub fn explain(key: &str, message: &str) -> String {
    let bare = key.split('[').next().unwrap_or(key);
    let Some(field) = quoted(message, "unknown field `") else { return message.to_owned() };
    let later = LATER_KEYS.iter().any(|&later| {
        let below = bare.strip_prefix(later).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        below && later.rsplit('.').next() == Some(field)
    });
    if later {
        return "not in this version of tapir; remove it".to_owned();
    }
    let known = message.split_once(", expected ").map_or("", |(_, known)| known);
    format!("unknown key `{field}`, expected {known}")
}

fn quoted<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    message.strip_prefix(before)?.split('`').next()
}

fn header<'a>(line: &'a str, open: &str, close: &str) -> Option<&'a str> {
    let (name, _) = line.trim_start().strip_prefix(open)?.split_once(close)?;
    Some(name.trim()).filter(|name| is_key(name))
}

fn key(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    Some(key.trim()).filter(|key| is_key(key))
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}
