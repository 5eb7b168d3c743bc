//! The demo's gate: a configuration in a directory of its own, and `tikigate serve` on it.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// The client of `config/demo.toml`.
pub(super) const CLIENT_ID: &str = "demo-client";
/// Not a secret: it is in this program.
pub(super) const SECRET: &str = "not-a-secret-only-for-the-demo";

/// Where `config/demo.toml` looks for it.
const SECRET_FILE: &str = "secrets/demo.secret";
const CONFIG: &str = include_str!("../../../config/demo.toml");
const START_WITHIN: Duration = Duration::from_secs(20);
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// A running gate with its files.
pub(super) struct Stage {
    program: PathBuf,
    directory: PathBuf,
    gate: Child,
    backend: SocketAddr,
    listen: SocketAddr,
    admin: SocketAddr,
    outbound: SocketAddr,
    tiki: SocketAddr,
    url: String,
    admin_url: String,
}

impl Stage {
    /// Writes the configuration and starts the gate between `backend` and `tiki`.
    pub(super) fn set(backend: SocketAddr, tiki: SocketAddr) -> anyhow::Result<Self> {
        let directory = make_directory()?;
        fs::write(directory.join("tikigate.toml"), CONFIG)?;
        fs::create_dir(directory.join("secrets"))?;
        write_secret(&directory.join(SECRET_FILE), SECRET)?;
        let listen = free_address()?;
        let admin = free_address()?;
        let outbound = free_address()?;
        let program = std::env::current_exe().context("this program's path")?;
        let gate = launch(
            &program,
            &directory,
            [listen, admin, outbound, backend, tiki],
        )?;
        let mut stage = Self {
            program,
            directory,
            gate,
            backend,
            listen,
            admin,
            outbound,
            tiki,
            url: format!("http://{listen}"),
            admin_url: format!("http://{admin}"),
        };
        if let Err(error) = stage.wait_until_ready() {
            let log = fs::read_to_string(stage.log_path()).unwrap_or_default();
            stage.clear();
            return Err(error.context(log));
        }
        Ok(stage)
    }

    /// Ends the gate as `kill -9` does, and starts it again on its files.
    pub(super) fn kill_and_start_again(&mut self) -> anyhow::Result<()> {
        self.gate.kill()?;
        self.gate.wait()?;
        let addresses = [
            self.listen,
            self.admin,
            self.outbound,
            self.backend,
            self.tiki,
        ];
        self.gate = launch(&self.program, &self.directory, addresses)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.gate.try_wait()? {
                bail!("it ended at once: {status}");
            }
            let probe = self.ask(&["probe", "ready"]).output();
            if probe.is_ok_and(|output| output.status.success()) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("it was not ready within {START_WITHIN:?}")
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Where the backend's calls to Tiki go.
    pub(super) fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    /// A command line that posts a plain notice, which is delivered signed.
    pub(super) fn plain_example(&self) -> String {
        let body = super::tiki_caller::ipn("TIKI-2001", "P-2001", 75_000);
        format!(
            "curl -i http://{}/payment/ipn -H 'Content-Type: application/json' -d {}",
            self.outbound,
            quoted(&body)
        )
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.directory.join("tikigate.log")
    }

    /// Runs a command of this program against the gate, shows it with what it prints, and returns that.
    pub(super) fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let shown: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
        super::say(&format!("  $ tikigate {}", shown.join(" ")));
        let output = self.run(arguments)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        for line in printed.lines() {
            super::say(&format!("    {line}"));
        }
        ensure!(
            output.status.success(),
            "tikigate {}: {}",
            shown.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(printed)
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        self.ask(arguments)
            .arg("--token-file")
            .arg(self.directory.join("admin.token"))
            .output()
            .context("a command's process")
    }

    /// This program with these arguments, pointed at the gate.
    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).args(["--admin", &self.admin_url]);
        command
    }

    /// A command line that sends one signed call to the gate.
    pub(super) fn example(&self) -> String {
        let body = super::tiki_caller::refund("R-mine", "TIKI-1001", 5_000);
        format!(
            "echo -n {} | tikigate sign --client-id {CLIENT_ID} --secret-file {} --body - --curl {}/tiki/refund | sh",
            quoted(&body),
            self.directory.join(SECRET_FILE).display(),
            self.url,
        )
    }

    /// A command line that lists the gate's ledger.
    pub(super) fn list_command(&self) -> String {
        let token = self.directory.join("admin.token");
        format!(
            "tikigate ledger list --admin {} --token-file {}",
            self.admin_url,
            token.display()
        )
    }

    /// Stops the gate and removes its files.
    pub(super) fn clear(mut self) {
        let asked = self.run(&["drain", "--no-wait"]);
        let deadline = Instant::now() + STOP_WITHIN;
        while asked.is_ok() && Instant::now() < deadline {
            if matches!(self.gate.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // What is left of it is gone with the directory.
        let _ = self.gate.kill();
        let _ = self.gate.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `tikigate serve` on the demo's directory, its log appended to what is there.
fn launch(
    program: &Path,
    directory: &Path,
    [listen, admin, outbound, backend, tiki]: [SocketAddr; 5],
) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("tikigate.log"))?;
    Command::new(program)
        .args(["serve", "--config"])
        .arg(directory.join("tikigate.toml"))
        .env("TIKIGATE__SERVER__LISTEN", listen.to_string())
        .env("TIKIGATE__ADMIN__LISTEN", admin.to_string())
        .env(
            "TIKIGATE__UPSTREAMS__LEGACY__URL",
            format!("http://{backend}"),
        )
        .env("TIKIGATE__OUTBOUND__LISTEN", outbound.to_string())
        .env(
            "TIKIGATE__OUTBOUND__ACCOUNTS__0__BASE_URL",
            format!("http://{tiki}/miniapp/tikivip"),
        )
        // The temporary directory may lie in memory, which a demo outlives.
        .env("TIKIGATE__LEDGER__ALLOW_UNSAFE_FILESYSTEM", "true")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("the gate's process")
}

/// A directory that nobody else can enter.
fn make_directory() -> anyhow::Result<PathBuf> {
    let directory = std::env::temp_dir().join(format!("tikigate-demo-{}", std::process::id()));
    fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
    fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    Ok(directory)
}

fn write_secret(path: &Path, secret: &str) -> anyhow::Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(secret.as_bytes())?;
    Ok(())
}

/// A loopback address that was free a moment ago.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// Quoted for a shell where it needs to be.
fn quoted(argument: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=".contains(&byte);
    if !argument.is_empty() && argument.bytes().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}
