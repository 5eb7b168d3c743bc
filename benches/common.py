"""What the benchmarks share: signed calls, the servers of a run, and wrk.

Every call is prepared and signed before it is sent. Everything listens on loopback and stops with
the script that started it.
"""

import base64
import hashlib
import hmac
import itertools
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time

CLIENT = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W"
SECRET = "a-secret-for-measuring"
REPO = pathlib.Path(__file__).resolve().parents[1]
BINARY = REPO / "target/release/tikigate"


def prepare(*tools):
    """Sees to it that the programs of a run are there, and that the run ends in order when it is told to."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing:
        sys.exit(f"missing: {' '.join(missing)} (apt-get install {' '.join(missing)})")
    if not BINARY.exists():
        sys.exit(f"missing: {BINARY} (cargo build --release)")


def say(text):
    """Progress, apart from what is measured."""
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def request(path, number, size, forge=False, reason="", client=CLIENT):
    """A signed call, as bytes: the message of this number, with a body of this size."""
    body = (
        f'{{"tiki_transaction_id":"t-{number}","transaction_amount":150000,"transaction_id":"p-{number}",'
        f'"status":"SUCCESS","reason_of_the_call":"'
    )
    if path.endswith("refund"):
        body = body.replace('"status":"SUCCESS","reason_of_the_call"', f'"request_id":"r-{number}","reason"')
    body = (body + reason + "x" * (size - len(body) - len(reason) - 2) + '"}').encode()
    return head(path, body, int(time.time() * 1000), forge, client) + body


def head(path, body, timestamp, forge=False, client=CLIENT):
    """What stands before a body that was signed at this time, in milliseconds."""
    payload = f"{timestamp}.{CLIENT}.".encode() + body
    encoded = base64.urlsafe_b64encode(payload).rstrip(b"=")
    signature = hmac.new(SECRET.encode(), encoded, hashlib.sha256).hexdigest()
    if forge:
        signature = signature[:-1] + ("1" if signature[-1] == "0" else "0")
    return (
        f"POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Tikivip-Timestamp: {timestamp}\r\nX-Tikivip-Client-Id: {client}\r\nX-Tikivip-Signature: {signature}\r\n\r\n"
    ).encode()


# wrk's own requests would be one and the same: this hands out prepared ones, in their order.
WRK_SCRIPT = """
function init(args)
  local file = assert(io.open("%(file)s", "rb"))
  requests, at = {}, 0
  body = file:read(tonumber(file:read(8)))
  while true do
    local size = file:read(8)
    if not size then break end
    requests[#requests + 1] = file:read(tonumber(size))
  end
end
function request() at = at + 1; return (requests[at] or os.exit(9)) .. body end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %%d %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


def write_calls(file, calls, body=b""):
    """Prepared calls as wrk's script reads them. With a body, they are the heads of calls that all have it."""
    with open(file, "wb") as to:
        for text in itertools.chain([body], calls):
            to.write(b"%8d" % len(text) + text)


def load(name, file, port, seconds, connections, tls=False):
    """Sends the calls of a file for so long; what wrk saw.

    `answered` is what wrk counts; up to one call a connection more was sent when it stopped.
    """
    script = file.with_suffix(".lua")
    script.write_text(WRK_SCRIPT % {"file": file})
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    command.append(f"http{'s' if tls else ''}://127.0.0.1:{port}/")
    run = subprocess.run(command, capture_output=True, text=True)
    line = next((line for line in run.stdout.splitlines() if line.startswith("RESULT")), None)
    if run.returncode == 9 or line is None:
        sys.exit(f"{name}: the prepared calls ran out; give more with --calls\n{run.stdout}{run.stderr}")
    answered, micros, p50, p99, refused, broken = map(int, line.split()[1:])
    return {
        "answered": answered,
        "per_second": answered * 1e6 / micros,
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
        "refused": refused,
        "broken": broken,
    }


def send(port, call):
    """Sends one call, which must be answered with 200."""
    send_all(port, [call])


def send_all(port, calls):
    """Sends calls one after the other over one connection; each must be answered with 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for call in calls:
            connection.sendall(call)
            answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200 "):
                sys.exit(f"a call was not taken: {answer.decode(errors='replace')}")


def trusting():
    """How a caller speaks TLS that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def connect(port, context):
    """A connection after one request, which is answered that there is nothing; with a context, by TLS."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if context:
        connection = context.wrap_socket(connection)
    connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 404"):
        sys.exit(f"not answered as it should: {answer!r}")
    return connection


def answer_to(port, call, context=None):
    """The status that one call is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        speaking = context.wrap_socket(connection) if context else connection
        speaking.sendall(call)
        answer = speaking.recv(65536)
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


class Process:
    """A server of this run, with the CPU time of all its processes."""

    def __init__(self, command, port, log):
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=open(log, "wb"), stderr=subprocess.STDOUT, process_group=0
        )
        self.port = port
        deadline = time.time() + 30
        while time.time() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.002)
        sys.exit(f"{command[0]} does not listen: {open(log).read()}")

    def pids(self):
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                waiting += [int(child) for child in task.read_text().split()]
        return found

    def cpu_by_thread(self):
        """CPU seconds of each thread's name."""
        used = {}
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                name = (task / "comm").read_text().strip()
                nanoseconds = int((task / "schedstat").read_text().split()[0])
                used[name] = used.get(name, 0) + nanoseconds / 1e9
        return used

    def threads(self, prefix):
        """The ids of the threads whose names begin so."""
        tasks = (task for pid in self.pids() for task in pathlib.Path(f"/proc/{pid}/task").iterdir())
        return sorted(int(task.name) for task in tasks if (task / "comm").read_text().startswith(prefix))

    def cpu_seconds(self):
        return sum(self.cpu_by_thread().values())

    def rss_mib(self):
        pages = sum(int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self, within=5):
        self.end(signal.SIGTERM, within)

    def end(self, how, within=5):
        try:
            os.killpg(self.process.pid, how)
            self.process.wait(timeout=within)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def nginx(directory, port, upstream=None, tls=None, check=None):
    """nginx as the backend; with `upstream`, as a proxy in front of it, which runs the script `check` first."""
    modules = http = server = block = ""
    location = 'location / { return 200 "{\\"data\\":{\\"status\\":\\"success\\"}}"; }'
    if upstream:
        passing = "proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection '';"
        block = f"upstream backend {{ server 127.0.0.1:{upstream}; keepalive 64; }}"
        location = f"location / {{ {passing} }}"
        if check:
            modules = "load_module /usr/lib/nginx/modules/ngx_http_js_module.so;"
            http = f"js_path {check.parent}; js_import check from {check.name};"
            location = f"location / {{ js_content check.check; }} location @legacy {{ {passing} }}"
    if tls:
        server = f"ssl_certificate {tls.certificate}; ssl_certificate_key {tls.key};"
    config = directory / f"nginx-{port}.conf"
    config.write_text(
        f"""{modules} daemon off; master_process off; pid {directory}/nginx-{port}.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{ access_log off; default_type application/json; keepalive_requests 100000000; client_body_buffer_size 128k;
client_body_temp_path {directory}/b{port}; proxy_temp_path {directory}/p{port}; fastcgi_temp_path {directory}/f{port};
uwsgi_temp_path {directory}/u{port}; scgi_temp_path {directory}/s{port}; {http}
{block} server {{ listen 127.0.0.1:{port} backlog=1024 {"ssl" if tls else ""}; {server} {location} }} }}"""
    )
    command = ["nginx", "-c", str(config), "-p", str(directory)]
    return Process(command, port, directory / f"nginx-{port}.log")


def tikigate(folder, admin, backend, ledger, workers=1, tls=None, more="", remembered=16_000_000, binary=None, before=()):
    """A gate whose configuration and log lie in this folder. `ledger` holds the lines of [ledger].

    Starting it again in the same folder is a restart. `more` are further lines of [server]; `before` is put
    before the command.
    """
    folder.mkdir(exist_ok=True)
    port = free_port()
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    if tls:
        more += f'\ntls = {{ certificate = "{tls.certificate}", private_key = "{tls.key}" }}'
    config = folder / "tikigate.toml"
    config.write_text(
        f"""[server]
listen = "127.0.0.1:{port}"
workers = {workers}
drain_delay = "0s"
{more}
per_address = {{ per_second = 1000000, burst = 1000000 }}
[admin]
listen = "127.0.0.1:{admin}"
[upstreams.legacy]
url = "http://127.0.0.1:{backend}"
max_in_flight = 256
[signature]
max_remembered = {remembered}
[[clients]]
id = "{CLIENT}"
secrets = [{{ name = "now", file = "secret" }}]
rate = {{ per_second = 1000000, burst = 1000000 }}
[[routes]]
name = "any"
path = "/any"
payload = "any"
[[routes]]
name = "ipn"
path = "/ipn"
payload = "transaction_ipn"
[[routes]]
name = "refund"
path = "/refund"
payload = "refund"
[[routes]]
name = "refund-reused"
path = "/reused/refund"
payload = "refund"
idempotency = {{ on_unknown = "resend" }}
[ledger]
{ledger}
"""
    )
    command = [*before, str(binary or BINARY), "serve", "--config", str(config)]
    return Process(command, port, folder / "log")


SQLITE = """store = "sqlite"
path = "tikigate.db"
"""
MEMORY = """store = "memory"
allow_volatile = true
max_records = 50000000
max_bytes = "16GiB"
"""
