//! All problems at once.

use super::{load, told};

/// Ten mistakes, each marked by its code at the end of its line.
const TEN: &str = r#"[server]
listen = "localhost:8080" # bad_address
max_conections = 5 # unknown_key
header_timeout = 5 # bad_duration

[upstreams.legacy]
url = "ftp://127.0.0.1" # bad_url
answer_within = "20s" # late_answer

[[clients]]
id = "client-key-1"
name = "wallet"
secrets = [
    { name = "a", file = "absent" }, # unreadable_secret
    { name = "b", file = "secret", value = "abc" }, # inline_secret
]

[[routes]]
name = "refund"
path = "/refund/../x" # bad_path
payload = "refnd" # unknown_word
clients = ["walet"] # unknown_name

[ledger]
store = "memory"
allow_volatile = true
"#;

#[test]
fn ten_mistakes_are_ten_problems_each_on_its_line() {
    let problems = load(TEN).unwrap_err();
    let found: Vec<(usize, &str)> = problems
        .iter()
        .map(|problem| (problem.line.unwrap_or(0), problem.code))
        .collect();
    let expected: Vec<(usize, &str)> = TEN
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, line.split_once(" # ")?.1)))
        .collect();
    assert_eq!(expected.len(), 10);
    assert_eq!(found, expected, "{}", told(&problems));
}

#[test]
fn a_syntax_error_has_a_line_and_no_quote() {
    let problems = load("[server]\nlisten = \"a\nsecret = 1\n").unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].code, problems[0].line), ("syntax", Some(2)));
    assert!(!told(&problems).contains("listen ="));
}
