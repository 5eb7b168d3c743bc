//! Certificates and keys that the configuration names.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::super::{Endpoint, Loaded, Problem};
use super::{GOOD, directory, good_but, load_in, now, only, told, write};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate that ends at this time, and its key, in PEM.
fn pair(not_after: SystemTime) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["gate.example".to_owned()]).unwrap();
    params.not_after = not_after.into();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

const TLS: &str = "[server.tls]\ncertificate = \"tls.crt\"\nprivate_key = \"tls.key\"\n";

fn with_tls(keys: &str) -> String {
    format!("{GOOD}{TLS}{keys}")
}

fn put(directory: &Path, certificate: &str, key: &str) {
    write(directory, "tls.crt", certificate.as_bytes());
    write(directory, "tls.key", key.as_bytes());
}

#[track_caller]
fn loaded(directory: &Path, text: &str) -> Loaded {
    load_in(directory, text, &[]).unwrap_or_else(|problems| panic!("{}", told(&problems)))
}

#[track_caller]
fn refused(directory: &Path, text: &str, code: &str, key: &str) -> Problem {
    only(load_in(directory, text, &[]).unwrap_err(), code, key)
}

#[test]
fn a_pair_is_read_and_its_end_is_known() {
    let directory = directory();
    let ends = now() + 100 * DAY;
    let (certificate, key) = pair(ends);
    put(directory.path(), &certificate, &key);
    let Loaded { settings, warnings } = loaded(directory.path(), &with_tls(""));
    assert_eq!(warnings, []);
    let tls = settings.server.tls.unwrap();
    assert!(!tls.demands_certificate);
    assert_eq!(tls.handshake_timeout, Duration::from_secs(5));
    assert_eq!(tls.server().alpn_protocols, [b"http/1.1"]);
    assert_eq!(settings.certificates.len(), 1);
    assert_eq!(settings.certificates[0].key, "server.tls.certificate");
    assert_eq!(settings.certificates[0].not_after, ends);

    let more = with_tls("client_ca = \"tls.crt\"\nhandshake_timeout = \"2s\"\n");
    let read = loaded(directory.path(), &more).settings;
    let demanding = read.server.tls.unwrap();
    assert!(demanding.demands_certificate);
    assert_ne!(demanding, tls, "two that differ are told apart");
    assert_eq!(read.certificates[1].key, "server.tls.client_ca");
    let again = loaded(directory.path(), &with_tls("")).settings;
    assert_eq!(again.server.tls.unwrap(), tls, "read twice, it is the same");
}

#[test]
fn an_end_that_is_near_is_warned_about() {
    let directory = directory();
    for (ends, words) in [
        (now() + 13 * DAY, "in 13 days"),
        (now() + DAY, "in a day"),
        (now() + DAY / 2, "less than a day"),
        (now() - DAY, "has expired"),
    ] {
        let (certificate, key) = pair(ends);
        put(directory.path(), &certificate, &key);
        let warnings = loaded(directory.path(), &with_tls("")).warnings;
        let warning = only(warnings, "certificate_expires", "server.tls.certificate");
        assert!(warning.message.contains(words), "{warning}");
    }
}

#[test]
fn what_is_no_pair_is_refused_and_says_which_file() {
    let directory = directory();
    let at = directory.path();
    let (certificate, key) = pair(now() + 100 * DAY);
    let (_, another) = pair(now() + 100 * DAY);
    let half = &certificate[..certificate.len() / 2];
    let half_key = &key[..key.len() / 2];
    for (written, key, wrong) in [
        (certificate.as_str(), another.as_str(), "private_key"),
        (certificate.as_str(), half_key, "private_key"),
        (certificate.as_str(), certificate.as_str(), "private_key"),
        (certificate.as_str(), "", "private_key"),
        (half, key.as_str(), "certificate"),
        (key.as_str(), key.as_str(), "certificate"),
        ("", key.as_str(), "certificate"),
    ] {
        put(at, written, key);
        let place = format!("server.tls.{wrong}");
        let problem = refused(at, &with_tls(""), "bad_certificate", &place);
        for line in another
            .lines()
            .chain(key.lines())
            .filter(|line| line.len() > 20)
        {
            assert!(!problem.to_string().contains(line), "{problem}");
        }
    }
    put(at, &certificate, &key);
    std::fs::remove_file(at.join("tls.key")).unwrap();
    refused(
        at,
        &with_tls(""),
        "bad_certificate",
        "server.tls.private_key",
    );
    put(at, &certificate, &key);
    write(at, "no.crt", b"nothing");
    let no_ca = with_tls("client_ca = \"no.crt\"\n");
    refused(at, &no_ca, "bad_ca", "server.tls.client_ca");
    let lone = format!("{GOOD}[server.tls]\ncertificate = \"tls.crt\"\n");
    refused(at, &lone, "missing", "server.tls.private_key");
}

#[test]
fn a_backend_may_speak_https_and_be_several() {
    let directory = directory();
    let at = directory.path();
    let (certificate, key) = pair(now() + 100 * DAY);
    put(at, &certificate, &key);
    let legacy = |url: &str, keys: &str| {
        good_but(
            "url = \"http://127.0.0.1:9000\"",
            &format!("url = {url}\n{keys}"),
        )
    };
    let ca = "ca = \"tls.crt\"";
    let one = loaded(at, &legacy("\"https://backend.example\"", ca)).settings;
    let upstream = &one.upstreams[0];
    assert_eq!(upstream.host, "backend.example");
    let Endpoint::Tls { host, port, .. } = &upstream.endpoints[0] else {
        panic!("{upstream:?}");
    };
    assert_eq!((host.as_str(), *port), ("backend.example", 443));
    assert_eq!(one.certificates[0].key, "upstreams.legacy.ca");

    let shown = format!("{ca}\nclient_certificate = \"tls.crt\"\nclient_key = \"tls.key\"");
    let showing = loaded(at, &legacy("\"https://backend.example\"", &shown)).settings;
    assert_ne!(
        showing.upstreams[0], *upstream,
        "another identity is another way"
    );
    let again = loaded(at, &legacy("\"https://backend.example\"", &shown)).settings;
    assert_eq!(again.upstreams[0], showing.upstreams[0]);

    let several = "[\"http://a.example:9000\", \"http://b.example:9000\", \"unix:/run/b.sock\"]";
    let named = "host = \"legacy.example\"";
    let read = loaded(at, &legacy(several, named)).settings;
    assert_eq!(read.upstreams[0].endpoints.len(), 3);
    refused(at, &legacy(several, ""), "missing", "upstreams.legacy.host");
    let same = "[\"http://a.example\", \"http://a.example:80\"]";
    refused(
        at,
        &legacy(same, named),
        "duplicate",
        "upstreams.legacy.url[1]",
    );
    refused(at, &legacy("[]", ""), "missing", "upstreams.legacy.url");
    let lone = format!("{ca}\nclient_certificate = \"tls.crt\"");
    let https = "\"https://backend.example\"";
    refused(
        at,
        &legacy(https, &lone),
        "missing",
        "upstreams.legacy.client_key",
    );
    let unused = legacy("\"http://127.0.0.1:9000\"", ca);
    only(
        loaded(at, &unused).warnings,
        "unused",
        "upstreams.legacy.ca",
    );
}

#[test]
fn breakers_and_health_checks_have_bounds() {
    let breaker = |keys: &str| format!("{GOOD}[upstreams.legacy.breaker]\n{keys}\n");
    let health = |keys: &str| format!("{GOOD}[upstreams.legacy.health]\n{keys}\n");
    let directory = directory();
    let at = directory.path();
    let read = loaded(at, &breaker("enabled = false\nfailures = 3")).settings;
    assert!(!read.upstreams[0].breaker.enabled);
    assert_eq!(read.upstreams[0].breaker.failures, 3);
    for (keys, key) in [
        ("failures = 0", "failures"),
        ("failure_percent = 101", "failure_percent"),
        ("min_calls = 0", "min_calls"),
        ("window = \"10ms\"", "window"),
        ("open_for = \"0s\"", "open_for"),
    ] {
        let place = format!("upstreams.legacy.breaker.{key}");
        refused(at, &breaker(keys), "out_of_bounds", &place);
    }
    let read = loaded(at, &health("path = \"/health?deep=1\"")).settings;
    let check = read.upstreams[0].health.clone().unwrap();
    assert_eq!(
        (check.path.as_str(), check.healthy_after),
        ("/health?deep=1", 2)
    );
    refused(at, &health(""), "missing", "upstreams.legacy.health.path");
    let every = health("path = \"/h\"\nevery = \"1ms\"");
    refused(at, &every, "out_of_bounds", "upstreams.legacy.health.every");
}

#[test]
fn each_file_that_matters_is_watched() {
    let directory = directory();
    let at = directory.path();
    let (certificate, key) = pair(now() + 100 * DAY);
    put(at, &certificate, &key);
    write(
        at,
        "tikigate.toml",
        with_tls("client_ca = \"no.crt\"\n").as_bytes(),
    );
    let reading = crate::config::load_watched(&at.join("tikigate.toml"), &[]);
    assert!(reading.result.is_err());
    let names: Vec<_> = reading
        .files
        .iter()
        .map(|file| {
            file.path
                .strip_prefix(at)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        names,
        ["tikigate.toml", "tls.crt", "tls.key", "no.crt", "secret"]
    );
}
