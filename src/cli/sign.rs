//! `tikigate sign`: the three headers of a signed call, or a whole `curl` command that makes it.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use http::HeaderName;

use super::exit;
use super::message::{self, Message};
use crate::clock::Clock;
use crate::tiki::{Family, SigningKey, Timestamp};

const EXAMPLES: &str = "\
Examples:
  tikigate sign --client-id RLCK... --secret-file secret --body refund.json
  tikigate sign --client-id RLCK... --secret-file secret --body refund.json --curl http://127.0.0.1:8080/tiki/refund | sh
  tikigate sign --client-id RLCK... --secret-file secret --path '/transaction?tiki_transaction_id=1'";

/// Sign a body, or path and query of a GET, and print the headers to send with it
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The client key that Tiki gave out
    #[arg(long, value_name = "ID", value_parser = message::parse_client_id)]
    client_id: String,
    /// File with the secret; one line end at its end is not part of it
    #[arg(long, value_name = "FILE")]
    secret_file: PathBuf,
    /// The headers' names: `tikivip` or `tiniapp`
    #[arg(long, default_value = "tikivip", value_parser = message::parse_family)]
    family: Family,
    /// Time of signing, in milliseconds since the epoch [default: now]
    #[arg(long, value_name = "MS", value_parser = parse_timestamp)]
    timestamp: Option<Timestamp>,
    #[command(flatten)]
    source: message::Source,
    /// Prints a curl command that makes the call: to this URL, or with --path to this base URL and the path
    #[arg(long, value_name = "URL")]
    curl: Option<String>,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    match execute(
        &args,
        &Clock::system(),
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
    ) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr(), "tikigate sign: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn execute(
    args: &Args,
    clock: &Clock,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let secret = message::read_secret(&args.secret_file)?;
    ensure!(
        !message::has_edges(&secret),
        "the secret in {} starts or ends with white space",
        args.secret_file.display()
    );
    let message = args.source.read(stdin)?;
    if let Message::Path(path) = &message {
        check_path(path)?;
    }
    let timestamp = match args.timestamp {
        Some(timestamp) => timestamp,
        None => Timestamp::from_system_time(clock.now())
            .context("this machine's clock can't be right: set it, or give --timestamp")?,
    };
    let signed = message.signed().bytes();
    let mac = SigningKey::from_secret(secret.expose()).sign(timestamp, &args.client_id, signed);
    let headers = [
        (args.family.timestamp_header(), timestamp.to_string()),
        (args.family.client_id_header(), args.client_id.clone()),
        (args.family.signature_header(), mac.to_hex()),
    ]
    .map(|(name, value)| format!("{}: {value}", documented(name)));

    let text = match &args.curl {
        None => headers.join("\n"),
        Some(url) => curl_command(url, &headers, &message)?,
    };
    writeln!(out, "{text}").context("can't write the answer")
}

fn parse_timestamp(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text.as_bytes())
        .ok_or_else(|| "it is milliseconds since the epoch, 13 digits".to_owned())
}

fn check_path(path: &str) -> anyhow::Result<()> {
    ensure!(
        path.starts_with('/'),
        "the path must start with `/`: it is signed without the base URL"
    );
    ensure!(
        path.bytes().all(|byte| byte.is_ascii_graphic()) && !path.contains('#'),
        "the path must be written as it is on the wire, with spaces and the like escaped and without a fragment"
    );
    Ok(())
}

/// `X-Tikivip-Timestamp` for `x-tikivip-timestamp`: any case will do, but people know this one.
fn documented(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}

/// A body in an argument is bounded by the system's limit for one, 128 KiB on Linux.
const LONGEST_ARGUMENT: usize = 100 * 1024;

fn curl_command(url: &str, headers: &[String], message: &Message) -> anyhow::Result<String> {
    ensure!(!url.is_empty(), "--curl needs a URL");
    let mut parts = vec!["curl --globoff --path-as-is".to_owned()];
    for header in headers {
        parts.push(format!("--header {}", quote(header)));
    }
    match message {
        Message::Path(path) => {
            let url = format!("{}{path}", url.trim_end_matches('/'));
            parts.push(format!("--url {}", quote(&url)));
        }
        Message::Body { bytes, file } => {
            parts.push("--header 'Content-Type: application/json'".to_owned());
            parts.push(format!("--data-binary {}", body_argument(bytes, file)?));
            parts.push(format!("--url {}", quote(url)));
        }
    }
    Ok(parts.join(" \\\n  "))
}

/// The body for `--data-binary`, which takes a leading `@` for a file's name.
fn body_argument(bytes: &[u8], file: &Option<PathBuf>) -> anyhow::Result<String> {
    if let Some(file) = file {
        let Some(file) = file.to_str() else {
            bail!("the name of the body's file is not UTF-8: give the file a plain name");
        };
        return Ok(quote(&format!("@{file}")));
    }
    let text = std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.starts_with('@') && !text.contains('\0'))
        .filter(|text| text.len() <= LONGEST_ARGUMENT)
        .context("this body can't be part of a command: put it into a file and give --body FILE")?;
    Ok(quote(text))
}

/// One word for a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use clap::Parser;

    use super::*;

    const CLIENT: &str = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W";
    const SECRET: &str = "EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn in_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), format!("{SECRET}\n")).unwrap();
        directory
    }

    /// What the command prints, at a time of Tiki's first published sample.
    fn sign(directory: &Path, more: &[&str], stdin: &[u8]) -> Result<String, String> {
        let secret = directory.join("secret");
        let line = ["sign", "--client-id", CLIENT, "--secret-file"]
            .into_iter()
            .chain([secret.to_str().unwrap()])
            .chain(more.iter().copied());
        let args = Line::try_parse_from(line)
            .map_err(|error| error.to_string())?
            .args;
        let timestamp = Timestamp::parse(b"1620621619569").unwrap();
        let (clock, _) = Clock::manual(timestamp.to_system_time());
        let mut out = Vec::new();
        let mut stdin = stdin;
        execute(&args, &clock, &mut stdin, &mut out).map_err(|error| format!("{error:#}"))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_published_samples_are_signed() {
        let directory = in_directory();
        assert_eq!(
            sign(directory.path(), &["--body", "-"], br#"{"id":123}"#).unwrap(),
            format!(
                "X-Tikivip-Timestamp: 1620621619569\nX-Tikivip-Client-Id: {CLIENT}\nX-Tikivip-Signature: 8ebd092b9df2cf90e8ccbcab2ba87ee14f2abb25eb8f18b4d7286d42adcd45c2\n"
            )
        );
        let path = "/order?location=H%C3%A0%20N%E1%BB%99i&order_id=88062110977884170";
        let signed = sign(
            directory.path(),
            &["--family", "tiniapp", "--path", path],
            b"",
        )
        .unwrap();
        assert!(signed.contains("X-Tiniapp-Signature: e1e0d63f7f8296dd31b2c082e611351a6c41a3bc0309a9299832f70b693722c8\n"));
    }

    #[test]
    fn a_given_time_is_signed() {
        let directory = in_directory();
        let signed = sign(
            directory.path(),
            &["--timestamp", "1667980513003", "--body", "-"],
            b"",
        )
        .unwrap();
        assert!(signed.starts_with("X-Tikivip-Timestamp: 1667980513003\n"));
        for bad in ["1667980513", "1667980513003000", "now"] {
            assert!(sign(directory.path(), &["--timestamp", bad, "--body", "-"], b"").is_err());
        }
    }

    /// The arguments that a shell makes of a curl command, one a line.
    fn arguments(command: &str) -> Vec<String> {
        let script = format!("curl() {{ printf '%s\\0' \"$@\"; }}\n{command}");
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    }

    fn after<'a>(arguments: &'a [String], option: &str) -> &'a str {
        let place = arguments.iter().position(|argument| argument == option);
        &arguments[place.unwrap() + 1]
    }

    #[test]
    fn the_curl_command_survives_the_shell() {
        let directory = in_directory();
        let body = "{\"reason\":\"it's $HOME `x` \\\\ \\\"\n\u{1f4b8}\"}\n";
        let url = "http://127.0.0.1:8080/tiki/refund?a=$(x)'";
        let command = sign(
            directory.path(),
            &["--body", "-", "--curl", url],
            body.as_bytes(),
        )
        .unwrap();
        let words = arguments(&command);
        assert_eq!(after(&words, "--data-binary"), body);
        assert_eq!(after(&words, "--url"), url);
        assert!(words.contains(&"Content-Type: application/json".to_owned()));
        assert!(words.contains(&format!("X-Tikivip-Client-Id: {CLIENT}")));

        let file = directory.path().join("it's a body.json");
        fs::write(&file, body).unwrap();
        let file = file.to_str().unwrap();
        let command = sign(directory.path(), &["--body", file, "--curl", url], b"").unwrap();
        assert_eq!(
            after(&arguments(&command), "--data-binary"),
            format!("@{file}")
        );

        let command = sign(
            directory.path(),
            &["--path", "/a?b=c", "--curl", "https://host/base/"],
            b"",
        )
        .unwrap();
        assert_eq!(
            after(&arguments(&command), "--url"),
            "https://host/base/a?b=c"
        );
        assert!(!command.contains("--data-binary"));
    }

    #[test]
    fn what_curl_would_change_is_refused() {
        let directory = in_directory();
        let long = "x".repeat(200_000);
        for body in [&b"@file"[..], b"\0", b"\xff", long.as_bytes()] {
            let refused = sign(
                directory.path(),
                &["--body", "-", "--curl", "http://host/"],
                body,
            );
            assert!(refused.unwrap_err().contains("--body FILE"));
        }
    }

    #[test]
    fn mistakes_of_the_caller_are_told() {
        let directory = in_directory();
        let refusal = |more: &[&str]| sign(directory.path(), more, b"").unwrap_err();
        assert!(refusal(&["--path", "https://api.tiki.vn/x"]).contains("base URL"));
        assert!(refusal(&["--path", "/a b"]).contains("on the wire"));
        assert!(refusal(&["--path", "/hà"]).contains("on the wire"));
        assert!(refusal(&["--body", "-", "--path", "/a"]).contains("cannot be used with"));
        assert!(refusal(&[]).contains("required"));
        assert!(refusal(&["--body", "-", "--family", "x"]).contains("tiniapp"));

        fs::write(directory.path().join("secret"), format!(" {SECRET}\n")).unwrap();
        let told = refusal(&["--body", "-"]);
        assert!(
            told.contains("white space") && !told.contains(SECRET),
            "{told}"
        );
    }
}
