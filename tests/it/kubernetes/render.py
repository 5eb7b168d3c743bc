#!/usr/bin/env python3
"""Renders what deploy/ has for Kubernetes, by the real tools, and prints it as JSON.

    render.py kustomize DIRECTORY           the objects of a kustomization
    render.py chart DIRECTORY NAME          a chart's, for each of the values that are a list on standard input:
                                            a list of {"objects": [...], "notes": "..."} or {"refused": "..."}
    render.py lint DIRECTORY                what `helm lint --strict` says, with the values on standard input
    render.py helm WORD...                  what a command line of Helm's from the documents would send
    render.py validate VERSION...           objects on standard input against the schemas of Kubernetes:
                                            a list of faults

tests/run installs what it needs; see requirements.txt beside it.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

TOOLS = Path(sys.executable).parent


class StrictLoader(yaml.SafeLoader):
    """A loader to which a key that stands twice is an error: Kubernetes would take the last one."""


def mapping(loader, node):
    loader.flatten_mapping(node)
    found = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


def objects_of(text):
    return [item for item in yaml.load_all(text, Loader=StrictLoader) if item]


def kustomize(directory):
    done = subprocess.run([TOOLS / "kubectl", "kustomize", directory], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"refused": done.stderr}
    return {"objects": objects_of(done.stdout)}


def with_dependencies(directory, work):
    """The chart, with the charts beside it that it depends on where `helm dependency build` would put them."""
    import helm_python

    chart = Path(work) / Path(directory).name
    shutil.copytree(directory, chart)
    for dependency in helm_python.dependency_list(str(chart)):
        source = Path(directory, dependency["repository"].removeprefix("file://")).resolve()
        shutil.copytree(source, Path(work) / source.name)
        helm_python.dependency_update(str(chart))
    return str(chart)


def chart(directory, name, all_values, namespace="default"):
    import helm_python

    with tempfile.TemporaryDirectory() as work:
        with helm_python.Chart.load(with_dependencies(directory, work)) as loaded:
            return [rendered(loaded, values, name, namespace) for values in all_values]


def rendered(loaded, values, name, namespace):
    import helm_python

    try:
        files = loaded.render(values, name=name, namespace=namespace)
    except helm_python.HelmError as error:
        return {"refused": str(error)}
    notes = [text for path, text in files.items() if path.endswith("NOTES.txt")]
    texts = [text for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return {"objects": [item for text in texts for item in objects_of(text)], "notes": "".join(notes)}


def lint(directory, values):
    import helm_python

    report = helm_python.lint(directory, values, strict=True)
    # 1 is what Helm calls information: that there is no icon.
    found = [message for message in report["messages"] if message["severity"] > 1]
    return [json.dumps(message) for message in found] + report["errors"]


def merged(into, values):
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merged(into[key], value)
        else:
            into[key] = value
    return into


def helm(words):
    """`helm upgrade --install NAME CHART` with the flags that the documents use, rendered instead of sent."""
    import helm_python

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("command", choices=["template", "install", "upgrade"])
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--reuse-values", action="store_true")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--set-file", action="append", default=[])
    parser.add_argument("--values", action="append", default=[])
    parser.add_argument("name")
    parser.add_argument("chart")
    said = parser.parse_args(words)
    values = {}
    for path in said.values:
        merged(values, helm_python.values_from_yaml(Path(path).read_text()))
    for text in said.set:
        merged(values, helm_python.parse_set_string(text))
    for text in said.set_file:
        merged(values, helm_python.parse_set_file(text))
    return chart(said.chart, said.name, [values], said.namespace)[0]


# The few fields of the Prometheus operator's that are used here. Kubernetes' own schemas don't have them.
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": LABELS},
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["matchLabels"],
                    "properties": {"matchLabels": LABELS},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["port"],
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string", "pattern": "^/"},
                            "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
                        },
                    },
                },
            },
        },
    },
}


def validate(objects, versions):
    import jsonschema
    import kubernetes_validate

    # One reading of each file, not one for each object.
    utils = kubernetes_validate.utils
    utils.schema_contents = functools.cache(utils.schema_contents)
    known = {utils.major_minor(version) for version in utils.all_versions()}
    faults = [f"there are no schemas of Kubernetes {version}" for version in versions if version not in known]
    for item in objects:
        named = f"{item.get('kind')} {item.get('metadata', {}).get('name')}"
        if item.get("kind") == "PodMonitor":
            checker = jsonschema.Draft202012Validator(POD_MONITOR)
            faults += [f"{named}: {error.json_path}: {error.message}" for error in checker.iter_errors(item)]
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(item, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                place = ".".join(str(part) for part in error.path)
                faults.append(f"{named}: {version}: {place}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                faults.append(f"{named}: {version}: {error.message}")
    return faults


def main(words):
    match words:
        case ["kustomize", directory]:
            answer = kustomize(directory)
        case ["chart", directory, name]:
            answer = chart(directory, name, json.load(sys.stdin))
        case ["lint", directory]:
            answer = lint(directory, json.load(sys.stdin))
        case ["helm", *rest]:
            answer = helm(rest)
        case ["validate", *versions] if versions:
            answer = validate(json.load(sys.stdin), versions)
        case _:
            sys.exit(__doc__)
    json.dump(answer, sys.stdout)


# No chart may reach for a cluster that this machine's user knows.
os.environ.pop("KUBECONFIG", None)
main(sys.argv[1:])
