//! A real PostgreSQL server for tests: Debian's, in a directory of its own, on a free port of the
//! loopback, run by a user who is not root, and gone with this process, however that ends.
//!
//! Unit tests include this file as well. Everything here blocks the calling thread.

use std::fs::Permissions;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The role that gates connect as: it owns their databases and may do nothing else.
pub const ROLE: &str = "gate";
/// The server's superuser.
const ADMIN: &str = "admin";
/// From the start of the server to its first connection, and from its end's order to its end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the server and ends it with the word it is told, or as a crash would when nobody is left to
/// tell it one; then its directory goes too.
const WATCH: &str = r#"
"$1" -D "$2/data" -c config_file="$2/data/postgresql.conf" >>"$2/log" 2>&1 &
server=$!
if read -r signal; then
    kill -s "$signal" "$server"
    wait "$server"
else
    kill -s QUIT "$server"
    wait "$server"
    rm -rf "$2"
fi
"#;

/// A server. Dropping it ends it and removes its directory.
pub struct Server {
    directory: PathBuf,
    port: u16,
    running: Option<Running>,
}

struct Running {
    watcher: Child,
    tell: ChildStdin,
}

impl Server {
    /// A server of this process, started once.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// A server with these settings besides the usual ones.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let directory = owned_directory();
        let data = directory.join("data");
        run(as_owner("initdb")
            .arg("-D")
            .arg(&data)
            .args([
                "-U",
                ADMIN,
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
            ])
            .arg("--no-sync"));
        let mut server = Self::over(directory, settings);
        server.begin();
        server.query("postgres", &format!("create role {ROLE} login"));
        server
    }

    fn over(directory: PathBuf, settings: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut lines = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\n\
             max_connections = 300\nshared_buffers = '64MB'\nwal_level = replica\nfsync = on\n",
            directory.display()
        );
        for (name, value) in settings {
            lines += &format!("{name} = '{value}'\n");
        }
        append(&directory.join("data/postgresql.conf"), &lines);
        Self {
            directory,
            port,
            running: None,
        }
    }

    /// A standby of this server that follows it asynchronously.
    pub fn standby(&self) -> Self {
        let directory = owned_directory();
        run(as_owner("pg_basebackup")
            .args(["-h", "127.0.0.1", "-U", ADMIN, "-p", &self.port.to_string()])
            .args([
                "--checkpoint=fast",
                "--write-recovery-conf",
                "--no-sync",
                "-D",
            ])
            .arg(directory.join("data")));
        let mut standby = Self::over(directory, &[]);
        standby.begin();
        standby
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.query("postgres", "select pg_promote()");
    }

    /// A database of its own for a test, owned by [`ROLE`].
    pub fn create_database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.query("postgres", &format!("create database {name} owner {ROLE}"));
        name
    }

    /// Where gates find a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's directory: its `data`, and its `log`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the superuser's statements give: rows as lines, columns with `|` between them.
    ///
    /// # Panics
    /// With what the server says, when it refuses.
    #[track_caller]
    pub fn query(&self, database: &str, statements: &str) -> String {
        self.try_query(database, statements)
            .unwrap_or_else(|fault| panic!("{statements}\n{fault}"))
    }

    /// The same, or what the server says when it refuses.
    pub fn try_query(&self, database: &str, statements: &str) -> Result<String, String> {
        let output = self
            .psql(database, statements)
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned())
    }

    fn psql(&self, database: &str, statements: &str) -> Command {
        let mut psql = program("psql");
        psql.args(["-h", "127.0.0.1", "-U", ADMIN, "-p", &self.port.to_string()])
            .args(["--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qAt"])
            .args(["-d", database, "-c", statements]);
        psql
    }

    /// Changes settings of the running server, as far as that needs no restart.
    pub fn reconfigure(&self, settings: &[(&str, &str)]) {
        let mut lines = String::new();
        for (name, value) in settings {
            lines += &format!("{name} = '{value}'\n");
        }
        append(&self.directory.join("data/postgresql.conf"), &lines);
        self.query("postgres", "select pg_reload_conf()");
    }

    /// Lets commits wait for a standby of this name, and returns when they do; an empty name: for none.
    pub fn wait_for_standby(&self, name: &str) {
        self.reconfigure(&[("synchronous_standby_names", name)]);
        // The server acts on it a moment after it was told: a commit shows whether it has.
        const COMMIT: &str = "select pg_logical_emit_message(true, 'a commit', '')";
        const END_WAITING: &str = "
            select pg_terminate_backend(pid) from pg_stat_activity
            where wait_event = 'SyncRep' and query like '%a commit%' and pid <> pg_backend_pid()";
        let deadline = Instant::now() + PATIENCE;
        while !name.is_empty() {
            assert!(Instant::now() < deadline, "commits don't wait for {name}");
            let mut commit = self.psql("postgres", COMMIT);
            commit.stdout(Stdio::null()).stderr(Stdio::null());
            let mut commit = commit.spawn().unwrap();
            while commit.try_wait().unwrap().is_none() {
                if self.query("postgres", END_WAITING) == "t" {
                    commit.wait().unwrap();
                    return;
                }
            }
        }
    }

    /// Puts a copy of a file into the server's data, for its owner alone.
    pub fn take_in(&self, file: &Path, name: &str) {
        let copy = self.directory.join("data").join(name);
        std::fs::copy(file, &copy).unwrap();
        std::fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
        if let Some((user, group)) = owner() {
            chown(&copy, Some(user), Some(group)).unwrap();
        }
    }

    /// Starts a server that was ended, on the same port.
    pub fn begin(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let mut watcher = owner_command("sh")
            .args(["-c", WATCH, "watch"])
            .arg(binary("postgres"))
            .arg(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tell = watcher.stdin.take().unwrap();
        self.running = Some(Running { watcher, tell });
        let deadline = Instant::now() + PATIENCE;
        while let Err(fault) = self.try_query("postgres", "select 1") {
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{fault}\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the server with a signal: `INT` lets it end connections and write everything down,
    /// `QUIT` is a crash.
    pub fn end(&mut self, signal: &str) {
        let Some(Running {
            mut watcher,
            mut tell,
        }) = self.running.take()
        else {
            return;
        };
        writeln!(tell, "{signal}").unwrap();
        watcher.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match self.running.take() {
            Some(Running { mut watcher, tell }) => {
                drop(tell);
                let _ = watcher.wait();
            }
            None => {
                let _ = std::fs::remove_dir_all(&self.directory);
            }
        }
    }
}

/// An empty directory that the server's owner owns.
fn owned_directory() -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("tikigate-postgres-")
        .tempdir()
        .unwrap()
        .keep();
    if let Some((user, group)) = owner() {
        chown(&directory, Some(user), Some(group)).unwrap();
    }
    directory
}

/// The user and group that servers run as; none: whoever runs this. The server refuses root.
fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(ids("postgres:").or_else(|| ids("nobody:")).unwrap())
}

fn as_owner(name: &str) -> Command {
    owner_command(binary(name))
}

fn owner_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let Some((user, group)) = owner() else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={group}"))
        .args(["--clear-groups", "--"])
        .arg(program)
        // The owner may not be let into this one.
        .current_dir("/");
    command
}

fn program(name: &str) -> Command {
    Command::new(binary(name))
}

/// A program of the newest PostgreSQL that is installed; Debian keeps them out of the PATH.
fn binary(name: &str) -> PathBuf {
    let versions = match std::fs::read_dir("/usr/lib/postgresql") {
        Ok(versions) => versions,
        Err(error) if error.kind() == ErrorKind::NotFound => return name.into(),
        Err(error) => panic!("{error}"),
    };
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let path = version.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            let program = path.join("bin").join(name);
            program.exists().then_some((number, program))
        })
        .collect();
    found.sort();
    found.pop().map_or_else(|| name.into(), |(_, path)| path)
}

/// Somebody else may take it before it is used; the server then doesn't start, and says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
