"""Files of deploy/: Kubernetes' against the fields of their kinds, the Dockerfile against what the server does."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install pyyaml")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")

ROOT = Path(__file__).parents[3]
MANIFEST = ROOT / "deploy" / "kuberay.yaml"
TEXT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}  # numbers among them would be refused


def closed(required: str = "", **fields: Any) -> dict[str, Any]:
    """An object of these fields alone: what is misspelt is refused, as Kubernetes refuses it."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"}
QUANTITIES = closed(cpu=QUANTITY, memory=QUANTITY)
SECRET = closed("secretKeyRef", secretKeyRef=closed("name key", name=TEXT, key=TEXT))
CONTAINER = closed(
    "name image",
    name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(closed("name", name=TEXT, value=TEXT, valueFrom=SECRET)),
    ports=listed(closed("containerPort", containerPort=NUMBER, name={"type": "string", "maxLength": 15})),
    readinessProbe=closed(httpGet=closed("path port", path=TEXT, port=TEXT), periodSeconds=NUMBER),
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=listed(closed("name mountPath", name=TEXT, mountPath=TEXT, readOnly={"type": "boolean"})),
)
VOLUME = closed(
    "name", name=TEXT, persistentVolumeClaim=closed("claimName", claimName=TEXT, readOnly={"type": "boolean"})
)
POD = closed(
    "spec",
    metadata=closed(labels=TEXTS),
    spec=closed(
        "containers", containers=listed(CONTAINER), volumes=listed(VOLUME), terminationGracePeriodSeconds=NUMBER
    ),
)
GROUP = {"rayStartParams": TEXTS, "template": POD}
RAY_CLUSTER = closed(  # ray.io/v1, RayClusterSpec
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=closed("rayStartParams template", **GROUP),
    workerGroupSpecs=listed(
        closed(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, **GROUP,
        )
    ),
)  # fmt: skip
DEPLOYMENT = closed(
    "selector template",
    replicas=NUMBER,
    strategy=closed(type={"enum": ["Recreate", "RollingUpdate"]}),
    selector=closed(matchLabels=TEXTS),
    template=POD,
)
SERVICE = closed(
    selector=TEXTS, ports=listed(closed("port", port=NUMBER, targetPort={"type": ["string", "integer"]}, name=TEXT))
)
KINDS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("apps/v1", "Deployment"): DEPLOYMENT,
    ("v1", "Service"): SERVICE,
}


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """By their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def test_every_document_has_the_fields_of_its_kind(documents: dict[str, Any]) -> None:
    assert set(documents) == {kind for _, kind in KINDS}
    for document in documents.values():
        head = closed("name", name=TEXT)
        spec = KINDS[document["apiVersion"], document["kind"]]
        jsonschema.validate(document, closed("metadata spec", apiVersion=TEXT, kind=TEXT, metadata=head, spec=spec))


def test_a_field_that_is_misspelt_would_be_seen(documents: dict[str, Any]) -> None:
    spec = documents["RayCluster"]["spec"]
    wrong = spec | {"headGroupSpec": spec["headGroupSpec"] | {"rayStartParam": {}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAY_CLUSTER)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**spec["headGroupSpec"], "rayStartParams": {"num-cpus": 0}}, closed("template", **GROUP))


def test_names_and_numbers_of_the_documents_fit_each_other(documents: dict[str, Any]) -> None:
    cluster, front, service = documents["RayCluster"], documents["Deployment"], documents["Service"]
    (container,) = front["spec"]["template"]["spec"]["containers"]
    (words,) = container["args"]
    assert f"--address={cluster['metadata']['name']}-head-svc:6379" in words, "KubeRay's name for the head's service"
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["maxReplicas"] == group["minReplicas"] or cluster["spec"]["enableInTreeAutoscaling"] is True
    assert f"--replicas {group['replicas']} " in words and f"--max-replicas {group['maxReplicas']} " in words
    assert front["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] in {port["name"] for port in container["ports"]}
    worker = group["template"]["spec"]["containers"][0]
    assert worker["volumeMounts"] == container["volumeMounts"], "the model has one path in every pod"
    assert int(worker["resources"]["requests"]["cpu"]) == int(words.split("--threads ")[1].split()[0])


def test_the_front_is_started_with_options_that_there_are(documents: dict[str, Any]) -> None:
    from thrifty.cli.main import CommandFiles

    (container,) = documents["Deployment"]["spec"]["template"]["spec"]["containers"]
    known = {name for flag in CommandFiles()["serve"].params for name in (*flag.opts, *flag.secondary_opts)}
    served = container["args"][0].partition("thrifty serve")[2]
    assert set(re.findall(r"--[a-z-]+", served)) <= known


def test_the_image_runs_without_privileges_and_asks_for_its_health() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last = lines[max(place for place, line in enumerate(lines) if line.startswith("FROM")) :]
    text = "\n".join(last)
    user = next(place for place, line in enumerate(last) if line.startswith("USER "))
    assert last[user] != "USER root" and user < next(at for at, line in enumerate(last) if "ENTRYPOINT" in line)
    assert "STOPSIGNAL SIGTERM" in text and "HEALTHCHECK" in text and "/health" in text
    (port,) = re.findall(r"^EXPOSE (\d+)$", text, re.MULTILINE)
    assert f'"--port", "{port}"' in text and f"'127.0.0.1', {port}" in text
    assert all("torch" not in line for line in last if not line.startswith("#"))


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_images_health_command_says_whether_requests_are_taken(status: int | None, code: int) -> None:
    """As it stands in the Dockerfile, but for the port; a proxy of the environment is not asked."""
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (words,) = re.findall(r"^  CMD (\[.*\])$", text, re.MULTILINE)
    _, option, program = json.loads(words)

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 500 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        port = server.server_port if status else 9
        done = subprocess.run(
            [sys.executable, option, program.replace("8000", str(port))],
            env=os.environ | {"http_proxy": "http://127.0.0.1:1"}, capture_output=True, timeout=20,
        )  # fmt: skip
    assert done.returncode == code, done.stderr
