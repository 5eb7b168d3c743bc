//! `tikigate check`: what is wrong with a configuration, and what it comes to.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::exit;
use crate::config::{self, Problem, Severity, effective};

/// Say what is wrong with a configuration, with lines, and what it comes to
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tikigate check --config tikigate.toml
  tikigate check --strict --format json | jq '.problems'

Exit codes: 0 it can be used, 78 it can't (with --strict: or there are warnings).")]
pub struct Args {
    /// The configuration; left out: TIKIGATE_CONFIG, or /etc/tikigate/tikigate.toml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Treat warnings as errors
    #[arg(long)]
    pub strict: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How `check` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Problems with lines, then the settings as TOML.
    Text,
    /// One JSON object: `file`, `ok`, `problems`, `settings`.
    Json,
}

/// Checks the configuration, prints to standard output, and returns 0 or 78.
pub fn run(args: Args) -> ExitCode {
    let Args {
        config,
        strict,
        format,
    } = args;
    let path = config::default_path(config);
    let environment: Vec<_> = std::env::vars_os().collect();
    let report = Report::of(&path, &environment, strict);
    let text = match format {
        Format::Text => report.text(),
        Format::Json => report.json(),
    };
    let printed = std::io::stdout().lock().write_all(text.as_bytes());
    match (printed, report.ok) {
        // Nobody reads any more (a closed pipe, say): the verdict still stands.
        (_, false) => ExitCode::from(exit::CONFIGURATION),
        (Err(_), true) => ExitCode::from(exit::FAILURE),
        (Ok(()), true) => ExitCode::from(exit::OK),
    }
}

/// What a check came to.
struct Report {
    file: String,
    ok: bool,
    problems: Vec<Problem>,
    settings: Option<Value>,
}

impl Report {
    fn of(path: &Path, environment: &[(OsString, OsString)], strict: bool) -> Self {
        let (problems, settings) = match config::load(path, environment) {
            Ok(loaded) => (loaded.warnings, Some(effective(&loaded.settings))),
            Err(problems) => (problems, None),
        };
        Self {
            file: path.display().to_string(),
            ok: settings.is_some() && (!strict || problems.is_empty()),
            problems,
            settings,
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for problem in &self.problems {
            text.push_str(&format!("{problem}\n"));
        }
        if !self.problems.is_empty() {
            text.push('\n');
        }
        text.push_str(&self.summary());
        if let Some(settings) = &self.settings {
            text.push_str("\n# The settings in force\n");
            // Settings hold neither nulls nor exotic keys, so that TOML can always say them.
            let shown = toml::to_string(settings).unwrap_or_else(|_| settings.to_string());
            text.push_str(&shown);
        }
        text
    }

    fn summary(&self) -> String {
        let count = |severity| {
            let of_kind = |problem: &&Problem| problem.severity == severity;
            self.problems.iter().filter(of_kind).count()
        };
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let verdict = if self.ok {
            "can be used"
        } else if errors == 0 {
            "is refused for its warnings"
        } else {
            "can't be used"
        };
        format!(
            "{}: {verdict}; errors: {errors}, warnings: {warnings}\n",
            self.file
        )
    }

    fn json(&self) -> String {
        let object = json!({
            "file": self.file,
            "ok": self.ok,
            "problems": self.problems,
            "settings": self.settings,
        });
        format!("{object:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const GOOD: &str = r#"
[upstreams.legacy]
url = "http://127.0.0.1:9000"
[[clients]]
id = "wallet"
secrets = [{ name = "a", file = "secret" }]
[[routes]]
name = "ipn"
path = "/ipn"
payload = "order_ipn"
[ledger]
store = "memory"
"#;

    fn report(text: &str, mode: u32, strict: bool) -> Report {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "fake-but-very-secret\n").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        let file = directory.path().join("tikigate.toml");
        std::fs::write(&file, text).unwrap();
        Report::of(&file, &[], strict)
    }

    #[test]
    fn a_good_one_is_followed_by_its_settings() {
        let report = report(GOOD, 0o600, true);
        assert!(report.ok);
        let text = report.text();
        assert!(
            text.contains("can be used; errors: 0, warnings: 0"),
            "{text}"
        );
        assert!(text.contains("answer_within = \"13s\""), "{text}");
        assert!(!text.contains("fake-but-very-secret"));
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["ok"], true);
        assert_eq!(
            json["settings"]["clients"][0]["secrets"][0]["secret"],
            "[redacted]"
        );
    }

    #[test]
    fn the_settings_are_printed_as_toml() {
        let text = report(GOOD, 0o600, false).text();
        let (_, settings) = text.split_once("# The settings in force\n").unwrap();
        let table: toml::Table = settings.parse().unwrap();
        assert_eq!(table["routes"][0]["name"].as_str(), Some("ipn"));
    }

    #[test]
    fn strict_makes_warnings_fatal() {
        assert!(report(GOOD, 0o644, false).ok);
        let strict = report(GOOD, 0o644, true);
        assert!(!strict.ok);
        assert!(strict.text().contains("is refused for its warnings"));
    }

    #[test]
    fn a_bad_one_prints_lines_and_no_settings() {
        let report = report("[server]\nlistn = 1\n", 0o600, false);
        assert!(!report.ok);
        let text = report.text();
        assert!(
            text.contains("tikigate.toml:2:1: error[unknown_key] server.listn:"),
            "{text}"
        );
        assert!(text.contains("help: did you mean `listen`?"), "{text}");
        let json: Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["settings"], Value::Null);
        assert!(json["problems"].as_array().is_some_and(|list| {
            list.iter()
                .any(|problem| problem["line"] == 2 && problem["severity"] == "error")
        }));
    }

    #[test]
    fn the_exit_code_tells() {
        let args = |config: &str| Args {
            config: Some(PathBuf::from(config)),
            strict: false,
            format: Format::Json,
        };
        let code = run(args("/nonexistent/tikigate.toml"));
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(78)));
    }
}
