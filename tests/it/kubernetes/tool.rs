//! `render.py`, which calls kubectl, Helm and the schemas.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::samples;

/// The objects of a kustomization in this directory of the repository, or why it can't be built.
pub(super) fn kustomize(directory: &str) -> Result<Vec<Value>, String> {
    objects(run(&["kustomize", directory], &Value::Null)).map(|(objects, _)| objects)
}

/// What became of a rendering: objects and notes, or why there are none.
pub(super) type Rendered = Result<(Vec<Value>, String), String>;

/// Objects and notes of a chart in this directory of the repository, or why it does not render.
pub(super) fn chart(directory: &str, name: &str, values: &Value) -> Rendered {
    charts(directory, name, std::slice::from_ref(values)).remove(0)
}

/// The same with several values.
pub(super) fn charts(directory: &str, name: &str, values: &[Value]) -> Vec<Rendered> {
    let Value::Array(answers) = run(&["chart", directory, name], &json!(values)) else {
        panic!("no list of renderings");
    };
    assert_eq!(answers.len(), values.len());
    answers.into_iter().map(objects).collect()
}

/// The same for a command line of Helm's, without its first word.
pub(super) fn helm(words: &[String]) -> Rendered {
    let words: Vec<&str> = std::iter::once("helm")
        .chain(words.iter().map(String::as_str))
        .collect();
    objects(run(&words, &Value::Null))
}

/// What Helm finds fault with in a chart.
pub(super) fn lint(directory: &str, values: &Value) -> Vec<String> {
    strings(&run(&["lint", directory], values))
}

/// What is wrong with objects by the schemas of these versions of Kubernetes.
pub(super) fn validate(objects: &[Value], versions: &[&str]) -> Vec<String> {
    let words: Vec<&str> = std::iter::once("validate")
        .chain(versions.iter().copied())
        .collect();
    strings(&run(&words, &json!(objects)))
}

fn objects(mut answer: Value) -> Rendered {
    if let Some(refused) = answer["refused"].as_str() {
        return Err(refused.to_owned());
    }
    let notes = answer["notes"].as_str().unwrap_or_default().to_owned();
    let Value::Array(objects) = answer["objects"].take() else {
        panic!("no objects in {answer}");
    };
    assert!(!objects.is_empty(), "nothing was rendered");
    Ok((objects, notes))
}

fn strings(answer: &Value) -> Vec<String> {
    let list = answer.as_array().unwrap();
    list.iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

fn python() -> PathBuf {
    let python = samples::root().join("target/tools/kubernetes/bin/python");
    assert!(
        python.exists(),
        "{} is missing: `tests/run kubernetes` installs the tools that these tests need",
        python.display()
    );
    python
}

/// kubectl, in a directory.
pub(super) fn kubectl(directory: &Path) -> Command {
    let mut command = Command::new(python().with_file_name("kubectl"));
    // No cluster that this machine's user knows is to be asked.
    command
        .current_dir(directory)
        .env("KUBECONFIG", "/dev/null");
    command
}

#[track_caller]
fn run(words: &[&str], input: &Value) -> Value {
    let mut child = Command::new(python())
        .arg("tests/it/kubernetes/render.py")
        .args(words)
        .current_dir(samples::root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // What takes no input may have closed it.
    let _ = stdin.write_all(input.to_string().as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "render.py {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}
