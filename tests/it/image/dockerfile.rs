//! The Dockerfile does what the scripts do, and says of the image what is so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::root::NONROOT;
use super::{layer, output, script};
use crate::support::samples;

/// An instruction: its name and the rest, lines joined.
#[derive(Debug, PartialEq, Eq)]
struct Instruction {
    name: String,
    rest: String,
}

/// The stages, each from its FROM on; what stands before the first is left out.
fn stages(text: &str) -> Vec<Vec<Instruction>> {
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
        .collect();
    for line in lines.join("\n").replace("\\\n", " ").lines() {
        let (name, rest) = line.split_once(' ').unwrap();
        let rest = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        if name == "FROM" {
            stages.push(Vec::new());
        }
        if let Some(stage) = stages.last_mut() {
            let name = name.to_owned();
            stage.push(Instruction { name, rest });
        }
    }
    stages
}

fn dockerfile() -> String {
    fs::read_to_string(samples::root().join("deploy/Dockerfile")).unwrap()
}

/// What the one instruction of this name in a stage says.
#[track_caller]
fn the<'a>(stage: &'a [Instruction], name: &str) -> &'a str {
    let found = all(stage, name);
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found[0]
}

fn all<'a>(stage: &'a [Instruction], name: &str) -> Vec<&'a str> {
    let named = stage.iter().filter(|instruction| instruction.name == name);
    named.map(|instruction| instruction.rest.as_str()).collect()
}

#[test]
fn the_image_runs_the_gate_as_nobody_and_nothing_else() {
    let stages = stages(&dockerfile());
    let image = stages.last().unwrap();
    assert_eq!(the(image, "FROM"), "scratch");
    assert_eq!(the(image, "USER"), format!("{NONROOT}:{NONROOT}"));
    let words = |text: &str| -> Vec<String> { serde_json::from_str(text).unwrap() };
    let entry = words(the(image, "ENTRYPOINT"));
    assert_eq!(words(the(image, "CMD")), ["serve"]);
    assert_eq!(the(image, "EXPOSE"), "8080 9901");
    let (_, check) = the(image, "HEALTHCHECK").split_once("CMD ").unwrap();
    let check = words(check);
    assert_eq!(check[0], entry[0]);
    assert_eq!(check[1..], ["probe", "live"]);
    // There is such a program, and nothing is run in a root that has no shell.
    let listed = output(script("tar", &["--list", "--file"]).arg(layer()));
    assert!(listed.lines().any(|line| line == format!(".{}", entry[0])));
    assert_eq!(all(image, "RUN"), [""; 0]);
    // Copies come from the stage that the scripts ran in: the root first, then what is the gate's.
    let owner = format!("--from=build --chown={NONROOT}:{NONROOT} /volumes/ /var/lib/");
    assert_eq!(all(image, "COPY"), ["--from=build /rootfs/ /", &owner]);
    assert!(the(&stages[0], "FROM").ends_with(" AS build"));
}

#[test]
fn labels_are_the_crate_s_own() {
    let stages = stages(&dockerfile());
    let image = stages.last().unwrap();
    let labels = the(image, "LABEL");
    for (name, value) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("version", "${VERSION}"),
        ("revision", "${REVISION}"),
    ] {
        let label = format!("org.opencontainers.image.{name}=\"{value}\"");
        assert!(labels.contains(&label), "{label} is missing in: {labels}");
    }
    let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
    assert_eq!(all(image, "ARG"), [&version, "REVISION=unknown"]);
}

#[test]
fn it_is_built_by_the_scripts_with_the_stated_rust() {
    let text = dockerfile();
    let minimum = env!("CARGO_PKG_RUST_VERSION");
    let pinned = format!("ARG RUST_IMAGE=rust:{minimum}.");
    assert!(text.contains(&pinned), "{pinned} is missing");
    let stages = stages(&text);
    let runs = all(&stages[0], "RUN").join("\n");
    assert!(runs.contains("deploy/image/rootfs /rootfs"), "{runs}");
    assert!(
        !runs.contains("cargo"),
        "flags stand in deploy/image/build alone: {runs}"
    );
    // What the build is given is there.
    let ignored = fs::read_to_string(samples::root().join(".dockerignore")).unwrap();
    let mut lines = ignored.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("*"), "nothing goes in that isn't named");
    for line in lines {
        let name = line.strip_prefix('!').unwrap_or_else(|| panic!("{line}"));
        assert!(samples::root().join(name).exists(), "{name}");
    }
}

/// `buildah`, which needs no engine, with storage of its own that goes with it.
struct Buildah {
    place: tempfile::TempDir,
}

impl Buildah {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = script("buildah", &["--storage-driver", "vfs"]);
        for directory in ["root", "runroot"] {
            command
                .arg(format!("--{directory}"))
                .arg(self.place.path().join(directory));
        }
        command.args(arguments).env("BUILDAH_ISOLATION", "chroot");
        command
    }

    /// Builds by this Dockerfile and gives the image's configuration and its one layer.
    fn build(&self, dockerfile: &Path, context: &Path, arguments: &[&str]) -> (Value, PathBuf) {
        let mut build = self.command(&["build", "--tag", "built", "--format", "docker"]);
        build
            .args(["--build-arg", "REVISION=of-the-test"])
            .args(arguments);
        output(build.arg("--file").arg(dockerfile).arg(context));
        let out = self.place.path().join("out");
        output(&mut self.command(&["push", "built", &format!("dir:{}", out.display())]));
        let json = |name: &str| -> Value {
            serde_json::from_str(&fs::read_to_string(out.join(name)).unwrap()).unwrap()
        };
        let blob = |entry: &Value| {
            let digest = entry["digest"].as_str().unwrap();
            digest.strip_prefix("sha256:").unwrap().to_owned()
        };
        let manifest = json("manifest.json");
        let layers = manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1, "{manifest}");
        (json(&blob(&manifest["config"])), out.join(blob(&layers[0])))
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        // Its files may belong to others; what is left of them is in a temporary directory.
        let _ = self.command(&["rmi", "--all", "--force"]).output();
    }
}

/// Mode, owner, size and name of all that is in a layer, and where links lead; sorted.
fn listing(layer: &Path) -> Vec<String> {
    let list = output(
        Command::new("tar")
            .args([
                "--list",
                "--verbose",
                "--numeric-owner",
                "--full-time",
                "--file",
            ])
            .arg(layer),
    );
    let mut lines: Vec<_> = list
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let name = words[5..].join(" ");
            let name = name.trim_start_matches("./").trim_end_matches('/');
            // The root itself is the builder's.
            (!name.is_empty()).then(|| format!("{} {} {} {name}", words[0], words[1], words[2]))
        })
        .collect();
    lines.sort();
    lines
}

/// Checks what came out of a builder against what the scripts make.
fn assert_is_the_image(config: &Value, built: &Path) {
    let config = &config["config"];
    assert_eq!(config["User"], format!("{NONROOT}:{NONROOT}"));
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/tikigate"]));
    assert_eq!(config["Cmd"], json!(["serve"]));
    let check = json!(["CMD", "/usr/local/bin/tikigate", "probe", "live"]);
    assert_eq!(config["Healthcheck"]["Test"], check);
    assert_eq!(
        config["ExposedPorts"],
        json!({ "8080/tcp": {}, "9901/tcp": {} })
    );
    let labels = &config["Labels"];
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(labels["org.opencontainers.image.revision"], "of-the-test");
    let (built, made) = (listing(built), listing(layer()));
    assert!(made.len() > 100, "{made:?}");
    assert_eq!(built, made);
}

#[test]
fn a_builder_makes_of_the_last_stage_what_the_scripts_make() {
    let buildah = Buildah {
        place: tempfile::tempdir().unwrap(),
    };
    // In place of the first stage, which takes minutes, what it leaves behind.
    let context = buildah.place.path().join("context");
    for directory in ["rootfs", "volumes"] {
        fs::create_dir_all(context.join(directory)).unwrap();
    }
    output(
        Command::new("tar")
            .args([
                "--extract",
                "--no-same-owner",
                "--same-permissions",
                "--directory",
            ])
            .arg(context.join("rootfs"))
            .arg("--file")
            .arg(layer()),
    );
    for volume in ["tikigate", "tikigate-mark"] {
        let from = context.join("rootfs/var/lib").join(volume);
        fs::rename(from, context.join("volumes").join(volume)).unwrap();
    }
    let text = dockerfile();
    let last = text.find("\nFROM scratch\n").unwrap();
    let first = "FROM scratch AS build\nCOPY rootfs /rootfs\nCOPY volumes /volumes\n";
    let short = buildah.place.path().join("Dockerfile");
    fs::write(&short, format!("{first}{}", &text[last..])).unwrap();
    let (config, built) = buildah.build(&short, &context, &[]);
    assert_is_the_image(&config, &built);
}

/// For people with minutes: the whole Dockerfile, on Debian and the toolchain that is here in place of the published
/// image, which has both.
#[test]
fn a_builder_makes_the_image_from_its_sources() {
    let buildah = Buildah {
        place: tempfile::tempdir().unwrap(),
    };
    let version = output(&mut buildah.command(&["--version"]));
    assert!(version.starts_with("buildah version"), "{version}");
    if std::env::var_os("TIKIGATE_BUILDAH").is_none() {
        return;
    }
    let base = buildah.place.path().join("base");
    output(&mut script(
        "tests/it/image/base",
        &[base.to_str().unwrap()],
    ));
    let container = output(&mut buildah.command(&["from", "scratch"]));
    let container = container.trim();
    output(&mut buildah.command(&["add", "--quiet", container, base.to_str().unwrap(), "/"]));
    let path =
        "PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    output(&mut buildah.command(&[
        "config",
        "--env",
        path,
        "--env",
        "CARGO_HOME=/usr/local/cargo",
        container,
    ]));
    output(&mut buildah.command(&[
        "commit",
        "--quiet",
        "--rm",
        container,
        "localhost/rust-here",
    ]));
    let arguments = [
        "--build-arg",
        "RUST_IMAGE=localhost/rust-here",
        "--pull-never",
    ];
    let file = samples::root().join("deploy/Dockerfile");
    let (config, built) = buildah.build(&file, samples::root(), &arguments);
    assert_is_the_image(&config, &built);
}
