//! Floods by other people's programs, which find what our own clients don't.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::crowd::{NICE, forged};

/// A program, and what it sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tool {
    /// `wrk` at full speed.
    Wrk(Sent),
    /// `slowhttptest` with these of its options.
    SlowHttpTest(&'static [&'static str]),
    /// `h2load`: HTTP/2 without asking whether it is spoken.
    H2Load,
}

/// What `wrk` sends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sent {
    /// A forged signature, each call from another address.
    Forged,
    /// The same, all from one address.
    ForgedByOne,
    /// A client that nobody is configured with, each call from another address.
    UnknownClient,
    /// No signature, each call from another address.
    Unsigned,
    /// A request to go on in HTTP/2.
    Upgrade,
}

/// A program that runs; it ends by itself.
pub(super) struct Running {
    tool: Tool,
    child: Child,
}

impl Tool {
    /// Starts it for so long. Its files lie in `directory`.
    pub(super) fn start(self, gate: SocketAddr, lasts: Duration, directory: &Path) -> Running {
        let mut command = Command::new("nice");
        command.args(["-n", &NICE.to_string()]);
        let seconds = lasts.as_secs().max(1);
        match self {
            Self::Wrk(sent) => {
                let script = directory.join("flood.lua");
                std::fs::write(&script, sent.script()).unwrap();
                command
                    .args(["wrk", "-t1", "-c16", "--timeout", "5s", "-s"])
                    .arg(script)
                    .arg(format!("-d{seconds}s"))
                    .arg(format!("http://{gate}/tiki/ipn"));
            }
            Self::SlowHttpTest(options) => {
                command
                    .arg("slowhttptest")
                    .args(options)
                    .args(["-l", &seconds.to_string(), "-c", "2000", "-r", "2000"])
                    .args(["-u", &format!("http://{gate}/tiki/ipn")]);
            }
            Self::H2Load => {
                // It gives up when its connections are closed: again and again then.
                let once = format!("h2load -t1 -c16 -n1600 -m10 http://{gate}/tiki/ipn");
                let script = format!(
                    "end=$(($(date +%s) + {seconds})); n=0\n\
                    while [ $(date +%s) -lt $end ]; do {once}; n=$((n + 1)); done; echo $n rounds"
                );
                command.args(["sh", "-c", &script]);
            }
        }
        let child = command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program can't be run: start the tests with `tests/run`, which installs it");
        Running { tool: self, child }
    }
}

impl Running {
    /// Waits for its end; what it says of its work, and how much that was.
    pub(super) fn end(self) -> (usize, String) {
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = match self.tool {
            Tool::Wrk(_) => number_before(&text, " requests in"),
            Tool::SlowHttpTest(_) => 1,
            Tool::H2Load => number_before(&text, " rounds"),
        };
        (number, text)
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let line = text.lines().find_map(|line| line.split_once(word));
    line.and_then(|(number, _)| number.trim().parse().ok())
        .unwrap_or(0)
}

impl Sent {
    /// For wrk: a call that is the same each time but for where it comes from.
    fn script(self) -> String {
        let mut call = match self {
            Self::Upgrade => forged(7, 300)
                .and("Connection", "Upgrade, HTTP2-Settings")
                .and("Upgrade", "h2c")
                .and("HTTP2-Settings", "AAMAAABkAAQAAP__"),
            _ => forged(7, 300),
        };
        for (name, value) in &mut call.headers {
            if name.to_ascii_lowercase().ends_with("client-id") {
                match self {
                    Self::UnknownClient => "nobody-that-we-know".clone_into(value),
                    Self::Unsigned => "X-Nothing".clone_into(name),
                    _ => {}
                }
            }
        }
        let mut script = "wrk.method = 'POST'\n".to_owned();
        let body = String::from_utf8_lossy(&call.body);
        script.push_str(&format!("wrk.body = '{body}'\n"));
        for (name, value) in &call.headers {
            script.push_str(&format!("wrk.headers['{name}'] = '{value}'\n"));
        }
        if !matches!(self, Self::ForgedByOne) {
            script.push_str(
                "local n = 0\nfunction request()\n  n = n + 1\n  \
                 wrk.headers['X-Forwarded-For'] = string.format('10.%d.%d.%d', n / 65536 % 256, n / 256 % 256, n % 256)\n  \
                 return wrk.format()\nend\n",
            );
        }
        script
    }
}
