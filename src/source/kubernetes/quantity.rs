//! Quantities, as Kubernetes writes numbers (`k8s.io/apimachinery/pkg/api/resource`): `1500`, `1.5k`, `10Mi`, `1e9`.

/// The longest quantity that is read.
const MAX_LENGTH: usize = 64;

/// Its value in whole units, rounded up as Kubernetes does; none when it is no quantity, is negative or does not fit.
pub(super) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.len() > MAX_LENGTH {
        return None;
    }
    let end = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == '+'));
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let number = number.strip_prefix('+').unwrap_or(number);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.bytes().any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    let value: u128 = digits.parse().ok()?;
    let (numerator, denominator) = scale(suffix)?;
    let denominator = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(denominator)?;
    u64::try_from(value.checked_mul(numerator)?.div_ceil(denominator)).ok()
}

/// What a suffix multiplies with, and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let at = |units: [&str; 7]| units.iter().position(|unit| *unit == suffix).and_then(|at| u32::try_from(at).ok());
    if let Some(power) = at(UNITS) {
        return Some((1000u128.pow(power), 1));
    }
    if let Some(power) = at(BINARY) {
        return Some((1024u128.pow(power), 1));
    }
    match suffix {
        "m" => return Some((1, 1_000)),
        "u" => return Some((1, 1_000_000)),
        "n" => return Some((1, 1_000_000_000)),
        _ => {}
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    let power = 10u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (1, power) } else { (power, 1) })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn as_kubernetes_reads_them() {
        for (text, value) in [
            ("0", 0),
            ("1500", 1_500),
            ("+5", 5),
            ("1k", 1_000),
            ("1.5k", 1_500),
            (".5M", 500_000),
            ("10M", 10_000_000),
            ("1.", 1),
            ("2Ki", 2_048),
            ("1Gi", 1 << 30),
            ("1E", 1_000_000_000_000_000_000),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("12e-1", 2),
            ("1500m", 2),
            ("1n", 1),
            ("1P", 1_000_000_000_000_000),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for text in ["", ".", "k", "1K", "-1", "1 k", "1kk", "1..5", "1e", "1e99", "20E", "++1", "1.2.3", "1e-99", "ⅷ"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"1".repeat(65)), None);
    }
}
