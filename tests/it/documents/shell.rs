//! As much of a shell's grammar as the documents' examples use. Nothing is run.

/// Every call of tikigate in a piece of shell, as its words, redirections and assignments left out.
pub(super) fn calls_of_tikigate(script: &str) -> Vec<Vec<String>> {
    let script = script.replace("\\\n", " ");
    let mut calls = Vec::new();
    for line in script.lines() {
        let line = line.trim().trim_start_matches("$ ");
        calls.extend(
            simple_commands(line)
                .into_iter()
                .filter_map(call_of_tikigate),
        );
    }
    calls
}

/// The words from `tikigate` on, if that is what is called, by itself or through cargo.
fn call_of_tikigate(words: Vec<String>) -> Option<Vec<String>> {
    let mut words = without_redirections(words).into_iter().peekable();
    while words.peek().is_some_and(|word| is_assignment(word)) {
        words.next();
    }
    match words.next()?.as_str() {
        "tikigate" => {}
        "cargo" => {
            let of_cargo: Vec<_> = words.by_ref().take_while(|word| word != "--").collect();
            of_cargo.first().filter(|word| *word == "run")?;
        }
        _ => return None,
    }
    Some(
        std::iter::once("tikigate".to_owned())
            .chain(words)
            .collect(),
    )
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

fn without_redirections(words: Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let operator = word.trim_start_matches(|letter: char| letter.is_ascii_digit());
        match operator {
            ">" | ">>" | "<" => drop(words.next()),
            _ if operator.starts_with(['>', '<']) => {}
            _ => kept.push(word),
        }
    }
    kept
}

/// The commands of one line, each as its words; what follows a `#` is a remark.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars().peekable();
    let end_word = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
        if let (Some(word), Some(command)) = (word.take(), commands.last_mut()) {
            command.push(word);
        }
    };
    while let Some(letter) = letters.next() {
        let redirects = word.as_ref().is_some_and(|word| word.ends_with('>'));
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some('\''), _) => word.get_or_insert_default().push(letter),
            (_, '\\') => word.get_or_insert_default().extend(letters.next()),
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '&') if redirects => word.get_or_insert_default().push(letter),
            (None, '|' | ';' | '&' | '(' | ')') => {
                end_word(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            (None, letter) if letter.is_whitespace() => end_word(&mut word, &mut commands),
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    end_word(&mut word, &mut commands);
    commands
}

#[test]
fn lines_are_taken_apart_as_a_shell_does() {
    let found = calls_of_tikigate(
        "$ tikigate check --config a.toml   # a remark; tikigate nonsense\n\
         echo -n '{\"a\": 1}' | tikigate sign --client-id 'a b' \\\n  --path \"/x\\\"y\" --curl http://x | sh\n\
         # tikigate nonsense\n\
         A=b TIKIGATE__SERVER__LISTEN=127.0.0.1:1 tikigate serve > log 2>&1 &\n\
         echo tikigate is not called\n\
         cargo run --release -- demo --once && tikigate verify --body - <body.json",
    );
    let expected = [
        &["tikigate", "check", "--config", "a.toml"][..],
        &[
            "tikigate",
            "sign",
            "--client-id",
            "a b",
            "--path",
            "/x\"y",
            "--curl",
            "http://x",
        ],
        &["tikigate", "serve"],
        &["tikigate", "demo", "--once"],
        &["tikigate", "verify", "--body", "-"],
    ];
    assert_eq!(found, expected);
}
