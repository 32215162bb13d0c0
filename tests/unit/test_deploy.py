"""The files of deploy/ parse, and what must agree between them and the settings does.

Each of these was a way to have everything run and nothing work: metrics that the container alone can read,
a stop that kills before the daemon's own grace is over, a setting that no longer exists.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from config.settings import Settings, ShutdownSettings
from config.units import seconds
from daemon.exits import Exit
from daemon.serve import _ENGINES_S
from pipeline.leaving import STOP_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# Of what a stop may take: the grace, the engines' thread, the engines; Ray's own end takes seconds more.
STOP_TAKES_S = ShutdownSettings().grace_s + _ENGINES_S + STOP_S
MARGIN_S = 30.0
PORT = Settings.model_fields["metrics"].default.port
USER = 10001


def _documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def _compose() -> Any:
    [tree] = _documents("compose.yaml")
    return tree["services"]


def _unit() -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "batchd.service")
    return unit["Service"]


def _pods(name: str) -> Iterator[dict[str, Any]]:
    """Each pod that a manifest describes."""
    for document in _documents(name):
        if document["kind"] in ("Deployment", "Job"):
            yield document["spec"]["template"]["spec"]
        elif document["kind"] == "RayCluster":
            spec = document["spec"]
            for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
                yield group["template"]["spec"]


def _daemon(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of the daemon, and its container."""
    [found] = [
        (pod, container)
        for pod in _pods(name)
        for container in pod["containers"]
        if container["name"] == "batchd"
    ]
    return found


MANIFESTS = ("kubernetes/batchd.yaml", "kubernetes/batchd-kuberay.yaml")


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\bBATCHD_[A-Z_]+\b", text))


@pytest.mark.parametrize(
    "path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: str(path.relative_to(DEPLOY))
)
def test_every_yaml_file_can_be_read(path: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", [*DEPLOY.rglob("*"), ROOT / "Dockerfile"], ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """One that is none stops the start."""
    for variable in _variables(path.read_text()) if path.is_file() else ():
        section, _, key = variable.removeprefix("BATCHD_").lower().partition("__")
        settings = Settings.model_fields[section].default
        assert isinstance(settings, BaseModel)
        assert key in type(settings).model_fields, variable


def test_whoever_stops_it_waits_until_it_has_stopped() -> None:
    """Docker kills after 10 s, Kubernetes after 30, if nobody says otherwise."""
    least = STOP_TAKES_S + MARGIN_S
    assert seconds(_compose()["batchd"]["stop_grace_period"]) >= least
    assert float(_unit()["TimeoutStopSec"]) >= least
    for manifest in MANIFESTS:
        assert _daemon(manifest)[0]["terminationGracePeriodSeconds"] >= least


def test_prometheus_reaches_the_daemon_in_another_container() -> None:
    """On all addresses of the container, under the name and port that it is configured for."""
    [config] = _documents("prometheus/prometheus.yml")
    [job] = config["scrape_configs"]
    assert (job["job_name"], job["static_configs"]) == ("batchd", [{"targets": [f"batchd:{PORT}"]}])
    environment = _compose()["batchd"]["environment"]
    assert environment["BATCHD_METRICS__HOST"] == "0.0.0.0"
    assert environment["BATCHD_METRICS__PORT"] == str(PORT)
    for manifest in MANIFESTS:
        _, container = _daemon(manifest)
        given = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert (given["BATCHD_METRICS__HOST"], given["BATCHD_METRICS__PORT"]) == ("0.0.0.0", str(PORT))
        assert {"name": "metrics", "containerPort": PORT} in container["ports"]
    [service] = [document for document in _documents(MANIFESTS[0]) if document["kind"] == "Service"]
    assert service["spec"]["ports"] == [{"name": "metrics", "port": PORT, "targetPort": "metrics"}]
    assert service["spec"]["publishNotReadyAddresses"]


def test_ports_are_open_to_this_machine_alone() -> None:
    """Metrics have no password, and Grafana's is admin's."""
    for name, service in _compose().items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert f"127.0.0.1:{PORT}:{PORT}" in _compose()["batchd"]["ports"]


def test_a_restart_is_for_a_loop_that_hangs_and_nothing_else() -> None:
    """/readyz is 503 while a model loads: a restart on it would go on for ever."""
    assert "/healthz" in str(_compose()["batchd"]["healthcheck"]["test"])
    assert (
        "/healthz"
        in re.findall(r"^HEALTHCHECK(?:.*\\\n)*.*", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[0]
    )
    for manifest in MANIFESTS:
        _, container = _daemon(manifest)
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_every_pod_runs_as_the_image_s_user_and_reaps_what_engines_leave() -> None:
    assert f"useradd --uid {USER}" in (ROOT / "Dockerfile").read_text()
    assert _compose()["batchd"]["init"] is True
    for manifest in MANIFESTS:
        for pod in _pods(manifest):
            user = pod["securityContext"]
            assert (user["runAsNonRoot"], user["runAsUser"], user["fsGroup"]) == (True, USER, USER)
            assert user["fsGroupChangePolicy"] == "OnRootMismatch"
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
            has_engines = pod["containers"][0]["name"] != "init"
            assert pod.get("shareProcessNamespace", False) is has_engines


def test_volumes_that_are_written_to_belong_to_the_image_s_user() -> None:
    """A named volume takes its owner from the image's folder; where there is none, it is root's."""
    targets = [volume.split(":")[1] for volume in _compose()["batchd"]["volumes"]]
    [made] = re.findall(r"install --directory --owner=batchd .*", (ROOT / "Dockerfile").read_text())
    assert targets == ["/spool", "/home/batchd/.cache"]
    assert all(target in made.split() for target in targets)


def test_many_pods_share_one_spool_and_engines_get_gpus() -> None:
    claims = [
        document for document in _documents(MANIFESTS[0]) if document["kind"] == "PersistentVolumeClaim"
    ]
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteMany"]] * 2
    names = {claim["metadata"]["name"] for claim in claims}
    for manifest in MANIFESTS:
        for pod in _pods(manifest):
            wanted = [
                v["persistentVolumeClaim"]["claimName"]
                for v in pod["volumes"]
                if "persistentVolumeClaim" in v
            ]
            assert wanted and set(wanted) <= names
            there = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= there
                assert {"name": "spool", "mountPath": "/spool"} in container["volumeMounts"]
    assert _daemon(MANIFESTS[0])[1]["resources"]["limits"]["nvidia.com/gpu"] == 1
    worker = list(_pods(MANIFESTS[1]))[-1]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_settings_of_the_config_map_are_settings() -> None:
    [config] = [document for document in _documents(MANIFESTS[0]) if document["kind"] == "ConfigMap"]
    settings = Settings(**yaml.safe_load(config["data"]["batchd.yaml"]))
    assert settings.inbox.backend == "polling"


def test_the_ray_cluster_is_the_version_that_is_installed() -> None:
    """A driver of another version is refused."""
    [cluster] = _documents(MANIFESTS[1])
    assert f"ray=={cluster['spec']['rayVersion']}" in (ROOT / "requirements/gpu.lock").read_text()
    pod, container = _daemon(MANIFESTS[1])
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    ports = [port["containerPort"] for port in pod["containers"][0]["ports"]]
    assert given["BATCHD_RAY__ADDRESS"] == f"127.0.0.1:{ports[0]}"
    token = next(entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN")
    assert all(token in each["containers"][0]["env"] for each in _pods(MANIFESTS[1]))
    shared = {"/tmp/ray", "/dev/shm"}
    for each in pod["containers"]:
        assert shared <= {mount["mountPath"] for mount in each["volumeMounts"]}


def _compose_command() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            said = subprocess.run(
                [*command, "version"], capture_output=True, text=True, timeout=30, check=False
            )
            # The first version of Compose knows no `name`.
            if said.returncode == 0 and " 1." not in said.stdout.splitlines()[0]:
                return command
    return None


@pytest.mark.parametrize(
    "files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]], ids=["cpu", "gpu"]
)
def test_compose_takes_its_files(files: list[str]) -> None:
    command = _compose_command()
    if command is None:
        pytest.skip("Docker Compose is not installed here")
    named = [argument for file in files for argument in ("--file", str(DEPLOY / file))]
    ran = subprocess.run(
        [*command, *named, "config", "--quiet"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """It looks for the program, too: any will do here."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed here")
    text = (DEPLOY / "batchd.service").read_text()
    unit = tmp_path / "batchd.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text, flags=re.MULTILINE))
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert (ran.returncode, [line for line in ran.stderr.splitlines() if str(unit.name) in line]) == (0, [])


def test_the_unit_restarts_what_may_help_and_survives_an_engine_without_memory() -> None:
    unit = _unit()
    assert (unit["Restart"], unit["RestartPreventExitStatus"]) == ("on-failure", str(int(Exit.WRONG_USE)))
    assert (unit["KillMode"], unit["OOMPolicy"], unit["User"]) == ("mixed", "continue", "batchd")
