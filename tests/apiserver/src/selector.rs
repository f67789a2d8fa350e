//! Label and field selectors.

use serde_json::Value;

use crate::failure::Failure;
use crate::resource::Resource;

/// What an object must be like to be listed or watched. The empty one takes all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Test)>,
    fields: Vec<(String, Test)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Test {
    /// A label that isn't there is in no set.
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Self::NotIn(values) => !value.is_some_and(|value| values.iter().any(|v| v == value)),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

impl Selector {
    /// From the values of `labelSelector` and `fieldSelector`.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, Failure> {
        let labels = split(labels).map(requirement).collect::<Result<_, _>>()?;
        let fields: Vec<(String, Test)> = split(fields).map(requirement).collect::<Result<_, _>>()?;
        for (name, test) in &fields {
            let known = matches!(name.as_str(), "metadata.name" | "metadata.namespace")
                || resource.selectable_fields().contains(&name.as_str());
            if !known {
                return Err(Failure::bad_request(format!("field label not supported: {name}")));
            }
            if matches!(test, Test::Exists | Test::Absent) {
                return Err(Failure::bad_request(format!("invalid field selector: {name} has no value to be")));
            }
        }
        Ok(Self { labels, fields })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|(name, test)| test.holds(labels[name].as_str()))
            && self.fields.iter().all(|(path, test)| {
                let field = path.split('.').fold(object, |value, name| &value[name]);
                test.holds(Some(field.as_str().unwrap_or_default()))
            })
    }
}

/// The requirements between commas; commas within parentheses separate values.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn requirement(text: &str) -> Result<(String, Test), Failure> {
    let wrong = || Failure::bad_request(format!("unable to parse requirement: {text}"));
    let (name, test) = if let Some((name, value)) = text.split_once("!=") {
        (name, Test::NotIn(vec![value.trim().into()]))
    } else if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (name, Test::In(vec![value.trim().into()]))
    } else if let Some((head, values)) = text.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(wrong)?.split(',').map(|value| value.trim().into()).collect();
        match head.split_whitespace().collect::<Vec<_>>()[..] {
            [name, "in"] => (name, Test::In(values)),
            [name, "notin"] => (name, Test::NotIn(values)),
            _ => return Err(wrong()),
        }
    } else if let Some(name) = text.strip_prefix('!') {
        (name, Test::Absent)
    } else {
        (text, Test::Exists)
    };
    let name = name.trim();
    let fits = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    if fits { Ok((name.into(), test)) } else { Err(wrong()) }
}
