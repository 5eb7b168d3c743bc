//! The shipped rules at another pace: each duration divided, everything else as it is.

/// What stands before a duration in a file of rules: a range, an offset, how long an alert is pending.
const BEFORE: [&str; 3] = ["[", "offset ", "for: "];

/// The text with each duration of at least a second divided by `divisor`, in milliseconds. A threshold
/// in seconds is a number and stays.
pub(super) fn shrunk(text: &str, divisor: u64) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((at, before)) = next(rest) {
        let (done, after) = rest.split_at(at + before.len());
        out += done;
        rest = match duration(after) {
            Some((milliseconds, length)) => {
                out += &format!("{}ms", milliseconds / divisor);
                &after[length..]
            }
            None => after,
        };
    }
    out + rest
}

/// Where the next of [`BEFORE`] is, and which.
fn next(text: &str) -> Option<(usize, &'static str)> {
    let places = BEFORE
        .iter()
        .filter_map(|word| Some((text.find(word)?, *word)));
    places.min()
}

/// A duration in Prometheus' form at the text's start, in milliseconds, and how many bytes it has.
pub(super) fn duration(text: &str) -> Option<(u64, usize)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].chars().next()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    Some((number * unit * 1000, digits + 1))
}

#[test]
fn durations_are_divided_and_nothing_else() {
    let text = "- alert: A5m\n  expr: rate(x:5m{le=\"13\"}[5m]) > 3600 and (a unless a offset 1h) < 14 * 86400\n  for: 2m\n  more: [x, 1m ago]\n";
    assert_eq!(
        shrunk(text, 60),
        "- alert: A5m\n  expr: rate(x:5m{le=\"13\"}[5000ms]) > 3600 and (a unless a offset 60000ms) < 14 * 86400\n  for: 2000ms\n  more: [x, 1m ago]\n"
    );
}
