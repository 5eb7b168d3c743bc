//! `tikigate verify`: whether a signature matches, and if not, which usual mistake explains it.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::exit;
use super::message;
use crate::clock::Clock;
use crate::config::Secret;
use crate::tiki::{
    Case, Cause, Diagnosis, Family, Freshness, Timestamp, Window, age_seconds, diagnose,
};

const EXAMPLES: &str = "\
Exit code: 0 when it matches, 1 when it does not.

Examples:
  tikigate verify --client-id RLCK... --secret-file secret --timestamp 1667980513000 --signature d542... --body received.json
  tikigate verify --client-id RLCK... --secret-file new --secret-file old --timestamp 1667980513000 --signature d542... --body -
  tikigate verify --client-id RLCK... --secret-file secret --timestamp 1667980513000 --signature e1e0... --path '/order?order_id=1'";

/// Say whether a signature matches, and if not, why
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The client id header's value
    #[arg(long, value_name = "ID", value_parser = message::parse_client_id)]
    client_id: String,
    /// File with the secret that should have been used. Given again: others that may have been used instead
    #[arg(long = "secret-file", value_name = "FILE", required = true)]
    secret_files: Vec<PathBuf>,
    /// The headers' names. Both families sign alike, so this changes nothing
    #[arg(long, default_value = "tikivip", value_parser = message::parse_family)]
    family: Family,
    /// The timestamp header's value
    #[arg(long, value_name = "MS", allow_hyphen_values = true)]
    timestamp: String,
    /// The signature header's value
    #[arg(long, value_name = "HEX", allow_hyphen_values = true)]
    signature: String,
    #[command(flatten)]
    source: message::Source,
    /// Also demands that the timestamp is no older than this now, such as `5m`
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    max_age: Option<Duration>,
    /// With --max-age: how far ahead of this machine's clock the timestamp may be
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    max_ahead: Duration,
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let good = execute(
        &args,
        &Clock::system(),
        &mut io::stdin().lock(),
        &mut io::stdout().lock(),
    );
    match good {
        Ok(true) => ExitCode::from(exit::OK),
        Ok(false) => ExitCode::from(exit::FAILURE),
        Err(error) => {
            // Nobody is left to be told when this fails.
            let _ = writeln!(io::stderr(), "tikigate verify: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// Whether all that was asked is as it should be.
fn execute(
    args: &Args,
    clock: &Clock,
    stdin: &mut dyn Read,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let secrets: Vec<Secret> = args
        .secret_files
        .iter()
        .map(|file| message::read_secret(file))
        .collect::<Result<_, _>>()?;
    let secrets: Vec<&[u8]> = secrets.iter().map(Secret::expose).collect();
    let message = args.source.read(stdin)?;
    let diagnosis = diagnose(&Case {
        timestamp: &args.timestamp,
        client_id: &args.client_id,
        signed: message.signed(),
        signature: &args.signature,
        secrets: &secrets,
    });
    match diagnosis {
        Diagnosis::Matches => {
            writeln!(out, "the signature matches")?;
            return judge_age(args, clock.now(), out);
        }
        Diagnosis::Mistakes(causes) => {
            writeln!(out, "the signature does not match:")?;
            write_causes(&causes, out)?;
        }
        Diagnosis::Unexplained(causes) => {
            writeln!(
                out,
                "the signature does not match, and none of the usual mistakes explains it:"
            )?;
            write_causes(&causes, out)?;
            writeln!(
                out,
                "  the secret, the client id, the timestamp or the {} is not what was signed with",
                match args.source.path {
                    Some(_) => "path",
                    None => "body",
                }
            )?;
        }
    }
    Ok(false)
}

fn write_causes(causes: &[Cause], out: &mut dyn Write) -> io::Result<()> {
    for Cause { name, advice } in causes {
        writeln!(out, "  {name}: {advice}")?;
    }
    Ok(())
}

fn judge_age(args: &Args, now: SystemTime, out: &mut dyn Write) -> anyhow::Result<bool> {
    let (Some(max_age), Some(timestamp)) =
        (args.max_age, Timestamp::parse(args.timestamp.as_bytes()))
    else {
        return Ok(true);
    };
    let window = Window {
        max_age,
        max_ahead: args.max_ahead,
    };
    let age = age_seconds(timestamp, now);
    let (verdict, fresh) = match window.judge(timestamp, now) {
        Freshness::Fresh => ("inside the window", true),
        Freshness::TooOld => ("too old", false),
        Freshness::TooFarAhead => ("too far ahead of this machine's clock", false),
    };
    writeln!(out, "its timestamp is {verdict}: its age is {age:.3} s")?;
    Ok(fresh)
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| "it is a duration such as `90s` or `5m`".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    const SECRET: &str = "EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf";
    const SIGNATURE: &str = "8ebd092b9df2cf90e8ccbcab2ba87ee14f2abb25eb8f18b4d7286d42adcd45c2";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Whether it is good and what the command prints, two seconds after Tiki's first published
    /// sample was signed.
    fn verify(secrets: &[&str], signature: &str, more: &[&str], body: &[u8]) -> (bool, String) {
        let directory = tempfile::tempdir().unwrap();
        let mut line: Vec<String> =
            "verify --client-id RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W --timestamp 1620621619569"
                .split(' ')
                .map(str::to_owned)
                .collect();
        for (index, secret) in secrets.iter().enumerate() {
            let file = directory.path().join(index.to_string());
            fs::write(&file, secret).unwrap();
            line.extend(["--secret-file".to_owned(), file.display().to_string()]);
        }
        line.extend(["--signature", signature].map(str::to_owned));
        line.extend(more.iter().map(|word| (*word).to_owned()));
        let args = Line::try_parse_from(line)
            .unwrap_or_else(|error| panic!("{error}"))
            .args;
        let signed_at = Timestamp::parse(b"1620621619569").unwrap().to_system_time();
        let (clock, _) = Clock::manual(signed_at + Duration::from_secs(2));
        let mut out = Vec::new();
        let mut stdin = body;
        let good = execute(&args, &clock, &mut stdin, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(!out.contains(SECRET), "{out}");
        (good, out)
    }

    #[test]
    fn a_right_signature_matches() {
        let with_line_end = format!("{SECRET}\n");
        let (good, told) = verify(
            &[&with_line_end],
            SIGNATURE,
            &["--body", "-"],
            br#"{"id":123}"#,
        );
        assert!(good);
        assert_eq!(told, "the signature matches\n");
    }

    #[test]
    fn the_window_is_judged_when_asked() {
        let body = br#"{"id":123}"#;
        let aged = |age| {
            verify(
                &[SECRET],
                SIGNATURE,
                &["--body", "-", "--max-age", age],
                body,
            )
        };
        let (good, told) = aged("5m");
        assert!(good && told.ends_with("its timestamp is inside the window: its age is 2.000 s\n"));
        let (good, told) = aged("1s");
        assert!(!good && told.contains("too old"));
        assert!(told.starts_with("the signature matches\n"));
    }

    #[test]
    fn mistakes_are_named() {
        let pretty = b"{\n  \"id\": 123\n}\n";
        let (good, told) = verify(&[SECRET], SIGNATURE, &["--body", "-"], pretty);
        assert!(!good);
        assert!(
            told.starts_with("the signature does not match:\n  body_minified: "),
            "{told}"
        );

        let (good, told) = verify(
            &["new", SECRET],
            SIGNATURE,
            &["--body", "-"],
            br#"{"id":123}"#,
        );
        assert!(!good && told.contains("  another_secret: ") && told.contains("number 2"));

        let upper = SIGNATURE.to_uppercase();
        let (good, told) = verify(&[SECRET], &upper, &["--body", "-"], br#"{"id":123}"#);
        assert!(!good && told.contains("  signature_upper_case: "));
    }

    #[test]
    fn what_nothing_explains_is_said_to_be_so() {
        let (good, told) = verify(&[SECRET], SIGNATURE, &["--path", "/order"], b"");
        assert!(!good);
        assert!(told.contains("none of the usual mistakes") && told.contains("the path is not"));
        let (good, told) = verify(&[SECRET], "-", &["--body", "-"], b"{}");
        assert!(!good && told.contains("signature_malformed"));
    }
}
