//! `tikigate fake-tiki`: the stand-in as a process of its own.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

use super::{FakeTiki, Family, Form, Options};

const HELP: &str = r#"The control API is on the same address and checks no signature:
  PUT    /_control/transactions   {"tiki_transaction_id","partner_transaction_id","amount","client","status"?}, or an array
  GET    /_control/transactions
  POST   /_control/orders         {"call":"ipn","transaction"?,"times"?,"do":ACTION}, or an array
  GET    /_control/orders         DELETE forgets them
  GET    /_control/seen?after=N
  GET    /_control/counts
  POST   /_control/send           {"url","body","client","family"?,"resend"?,"speed"?,"unchanged"?,"patience_ms"?}
ACTION: {"code":{"code":5,"form"?:"code|partner","apply"?}} {"http":{"status":503,"body"?,"apply"?}} "reset_at_once"
  "apply_then_reset" "apply_then_close" {"apply_then_hang":{"ms":N}} {"hang":{"ms":N}} "half_answer" {"garbage":{}}
  {"huge":{"bytes":N}} {"redirect":{"url":U}} {"slow":{"ms":N}} {"call_first":{"url","body","client"}}

Example:
  tikigate fake-tiki --listen 127.0.0.1:9000 --client RLCK...=secret --auto-create
  curl -d '{"call":"ipn","do":"apply_then_reset"}' http://127.0.0.1:9000/_control/orders"#;

/// Stand in for Tiki's partner API: for tests and demonstrations, with books that are in memory
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Where to listen; port 0 takes a free one, which the first line of output names
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A client and the file with its secret; one line end at its end is not part of it
    #[arg(long = "client", value_name = "ID=FILE", required = true, value_parser = parse_client)]
    clients: Vec<(String, PathBuf)>,
    /// The names of the signature's headers
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// The path below which the API is
    #[arg(long, value_name = "PATH", default_value = "/miniapp/tikivip", value_parser = parse_base)]
    base_path: String,
    /// Certificates in PEM: speaks TLS
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// The certificate's private key in PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// An IPN for an unknown transaction makes it
    #[arg(long)]
    auto_create: bool,
    /// The form in which IPNs are answered
    #[arg(long, value_enum, default_value_t)]
    envelope: Form,
    /// How old a timestamp may be: `500ms`, `30s`, `5m` or `1h`
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_time)]
    window: Duration,
    /// Refuses a signature that came before, instead of only noting it
    #[arg(long)]
    strict_repeats: bool,
}

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: Args) -> ExitCode {
    match execute(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(io::stderr(), "tikigate fake-tiki: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(args: Args) -> anyhow::Result<()> {
    let mut options = Options {
        listen: args.listen,
        base_path: args.base_path,
        family: args.family,
        tls: args.certificate.zip(args.private_key),
        auto_create: args.auto_create,
        envelope: args.envelope,
        max_age: args.window,
        strict_repeats: args.strict_repeats,
        ..Options::default()
    };
    for (client, file) in args.clients {
        let secret =
            std::fs::read(&file).with_context(|| format!("can't read {}", file.display()))?;
        let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        ensure!(!secret.is_empty(), "{} has no secret", file.display());
        options = options.client(client, secret);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let listen = options.listen;
        let fake = FakeTiki::start(options)
            .await
            .with_context(|| format!("can't start on {listen}"))?;
        let mut out = io::stdout().lock();
        writeln!(out, "fake-tiki listening on {}", fake.origin())?;
        out.flush()?;
        drop(out);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        fake.stop().await;
        Ok(())
    })
}

fn parse_client(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((id, file)) if !id.is_empty() && !file.is_empty() => Ok((id.into(), file.into())),
        _ => Err("it is a client id, `=`, and a file".to_owned()),
    }
}

fn parse_base(text: &str) -> Result<String, String> {
    if (text.is_empty() || text.starts_with('/')) && !text.contains(['?', '#', ' ']) {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("it is a path, like /miniapp/tikivip".to_owned())
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = &text[..text.len() - unit.len()];
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("it is a number and ms, s, m or h".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or_else(|| "it is a number and ms, s, m or h".to_owned())
}
