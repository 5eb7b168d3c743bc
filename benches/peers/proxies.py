"""The proxies of the comparison, each started with a configuration that checks Tiki VIP's signature where it can."""

import base64
import subprocess

from common import BINARY, CLIENT, SECRET, Process, free_port, nginx, tikigate

PLAIN = BINARY.parent / "examples/plain"

# Beyond a body of 64 KiB in base64, which HAProxy needs in one buffer.
LARGE_BUFFER = 131072


def haproxy(directory, backend, tls=None, buffer=16384):
    """HAProxy, checking the signature with its own converters."""
    port = free_port()
    key = base64.b64encode(SECRET.encode()).decode()
    shown = f"ssl crt {tls.both} alpn http/1.1" if tls else ""
    config = directory / f"haproxy-{port}.cfg"
    config.write_text(
        f"""global
  nbthread 1
  tune.bufsize {buffer}
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 5s
  option http-keep-alive
  http-reuse always
frontend gate
  bind 127.0.0.1:{port} {shown}
  option http-buffer-request
  http-request set-var(txn.ts) req.hdr(x-tikivip-timestamp)
  http-request set-var(txn.client) req.hdr(x-tikivip-client-id)
  http-request set-var(txn.body) req.body
  http-request set-var(txn.mac) str(),concat(,txn.ts,.),concat(,txn.client,.),concat(,txn.body),ub64enc,hmac(sha256,{key}),hex,lower
  http-request set-var(txn.sig) req.hdr(x-tikivip-signature)
  http-request deny deny_status 401 unless {{ var(txn.mac),secure_memcmp(txn.sig) }}
  default_backend legacy
backend legacy
  server legacy 127.0.0.1:{backend}
"""
    )
    return Process(["haproxy", "-db", "-f", str(config)], port, directory / f"haproxy-{port}.log")


def nginx_passing(directory, backend, tls=None):
    """nginx, which passes everything through unchecked."""
    return nginx(directory, free_port(), upstream=backend, tls=tls)


CHECK = """import crypto from 'crypto';
const secret = '%(secret)s', client = '%(client)s';
function check(r) {
  const sent = r.headersIn;
  const payload = sent['X-Tikivip-Timestamp'] + '.' + sent['X-Tikivip-Client-Id'] + '.' + r.requestText;
  const encoded = Buffer.from(payload).toString('base64url');
  const mac = crypto.createHmac('sha256', secret).update(encoded).digest('hex');
  if (sent['X-Tikivip-Client-Id'] !== client || mac !== sent['X-Tikivip-Signature']) {
    r.return(401);
    return;
  }
  r.internalRedirect('@legacy');
}
export default { check };
"""


def nginx_njs(directory, backend):
    """nginx, checking the signature in njs."""
    (directory / "check.js").write_text(CHECK % {"secret": SECRET, "client": CLIENT})
    return nginx(directory, free_port(), upstream=backend, check=directory / "check.js")


def envoy(program, directory, backend):
    """Envoy, which passes everything through unchecked."""
    port = free_port()
    config = directory / "envoy.yaml"
    config.write_text(
        f"""static_resources:
  listeners:
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: gate
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: legacy, timeout: 30s }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: legacy
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: legacy
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {backend} }} }} }}
"""
    )
    command = [str(program), "-c", str(config), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    return Process(command, port, directory / "envoy.log")


def gate(directory, backend, ledger, tls=None, **more):
    """The gate, everything on: limits, signature memory, log line, metrics."""
    return tikigate(directory, free_port(), backend, ledger, tls=tls, **more)


def plain(directory, backend, kind, commits=0, store="log"):
    """A plain proxy (benches/plain); with commits, in a file that is appended to ("log") or SQLite's ("db")."""
    port = free_port()
    command = [PLAIN, kind, f"127.0.0.1:{port}", f"127.0.0.1:{backend}", SECRET]
    if commits:
        command += [str(commits), directory / f"plain-{port}.{store}"]
    return Process([str(word) for word in command], port, directory / f"plain-{port}.out")


class Certificate:
    """A certificate of its own for the run, with its key, and both in one file."""

    def __init__(self, directory):
        self.certificate, self.key, self.both = directory / "crt.pem", directory / "key.pem", directory / "both.pem"
        command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost"
        paths = ["-keyout", str(self.key), "-out", str(self.certificate)]
        subprocess.run(["openssl", *command.split(), *paths], check=True, capture_output=True)
        self.both.write_text(self.certificate.read_text() + self.key.read_text())


def version(*command):
    """What a program says of its version, in one line."""
    run = subprocess.run(command, capture_output=True, text=True)
    said = (run.stdout or run.stderr).strip().splitlines()
    return said[0].strip() if said else "unknown"
