"""Makes ``tests/data/kuberay_rayjob.json``, what KubeRay's CRD says of a RayJob's own keys.

    git show v1.7.0:helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml > rayjobs.yaml
    python -m tests.kuberay_schema rayjobs.yaml v1.7.0

in a clone of github.com/ray-project/kuberay (Apache-2.0). The CRD has 1.4 MB, most of it
Kubernetes' pods; these have a place only (:data:`POD`), and are checked with Kubernetes' own
schema. Kept are names, types, required keys and enumerations; descriptions, the status and the
rules between keys (CEL) are not. An unknown key is refused, as ``kubectl`` does by default.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.paths import TESTS

FILE = TESTS / "data" / "kuberay_rayjob.json"
POD = "a pod template of Kubernetes"
_PODS = {"template", "submitterPodTemplate"}
# Other parts that are Kubernetes' own; no file of ours uses them.
_OTHERS = {"env", "envFrom", "headService", "networkPolicy", "resources", "securityContext"}
_OTHERS |= {"valueFrom", "volumeMounts", "metadata"}
_KEPT = ("type", "required", "enum", "minimum", "maximum")


def pruned(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a part of the CRD, as JSON Schema."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {k: schema[k] for k in _KEPT if k in schema}
    if "items" in schema:
        found["items"] = pruned(schema["items"])
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        found["additionalProperties"] = pruned(more)
    if "properties" in schema:
        found["additionalProperties"] = False
        found["properties"] = {
            name: {"$comment": POD}
            if name in _PODS
            else ({"type": of["type"]} if name in _OTHERS else pruned(of))
            for name, of in sorted(schema["properties"].items())
            if name != "status"
        }
    return found


def main(crd: str, version: str) -> None:
    """Write the file."""
    text = Path(crd).read_text()
    whole = yaml.load(text, Loader=yaml.CSafeLoader)
    [schema] = [
        of["schema"]["openAPIV3Schema"]
        for of in whole["spec"]["versions"]
        if of["name"] == "v1" and of["served"]
    ]
    out = {
        "$comment": f"KubeRay {version}, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml, "
        "pruned by tests/kuberay_schema.py. Copyright the KubeRay authors, Apache-2.0",
        **pruned(schema),
    }
    FILE.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
