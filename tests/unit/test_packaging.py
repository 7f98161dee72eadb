"""What is shipped and how: container files, ignore files, package lists, file sizes."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
COMPOSE = ["docker-compose.yml", "docker/compose.ci.yml"]
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}  # both write the same folder
REFUSED_BY_OLD_ENGINES = {
    "a frontend image": r"^#\s*syntax=",
    "a heredoc": r"^(RUN|COPY)\b.*<<",
    "COPY --link": r"^(COPY|ADD)\b.*--link",
    "HEALTHCHECK --start-interval": r"--start-interval",
    "ADD --checksum": r"^ADD\b.*--checksum",
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions(name: str = "docker/Dockerfile") -> list[str]:
    """Instructions with continued lines joined, comments left out."""
    lines = [line for line in read(name).splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def ignored(path: str, patterns: list[str]) -> bool:
    """Docker's rule: a pattern takes a path or any folder above it; the last that matches decides."""
    answer = False
    for pattern in patterns:
        kept, glob = pattern.startswith("!"), pattern.removeprefix("!").removeprefix("**/")
        tries = [path, *map(str, PurePosixPath(path).parents)]
        names = [part for t in tries for part in ([PurePosixPath(t).name] if "**/" in pattern else [t])]
        if any(fnmatchcase(name, glob) and ("/" not in name or glob != "*") for name in names):
            answer = not kept
    return answer


def extras() -> dict[str, list[Requirement]]:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {name: [Requirement(text) for text in texts] for name, texts in lists.items()}


def test_training_asks_for_all_that_it_imports() -> None:
    names = {"PIL": "pillow", "skimage": "scikit-image"}
    asked = {requirement.name for name in ("", "train", "cpu") for requirement in extras()[name]}
    exempt = {"training", "models", "medrestore", "bm3d", "markupsafe", *sys.stdlib_module_names}  # jinja2 brings one
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {module.split(".")[0] for module in modules} - exempt:
                assert names.get(top, top) in asked, f"{path.name} imports {top}"
    assert "pywavelets" in asked  # scikit-image imports it when it is needed


def ours(services: dict) -> list[dict]:
    """Those of Compose's services that run our image."""
    return [service for service in services.values() if service["image"].startswith("medrestore:")]


def tracked(*paths: str) -> list[str]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and a clone")
    out = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return out.stdout.splitlines()


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_file_holds_to_the_specification(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bare_compose_up_serves_hardened_and_on_loopback_alone() -> None:
    services = yaml.safe_load(read("docker-compose.yml"))["services"]
    assert [name for name, service in services.items() if "profiles" not in service] == ["medrestore"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for service in ours(services):
        assert service["read_only"] is True
        assert any(mount.startswith("/tmp") for mount in service["tmpfs"])
        assert service["environment"]["MEDRESTORE_ACCESS"] == "open"
        assert service["environment"]["ORT_DISABLE_TELEMETRY"] == "1"
    assert services["medrestore-gpu"]["environment"]["MEDRESTORE_DEVICES"] == '["cuda:0"]'
    assert services["medrestore"]["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]


def test_jobs_have_a_folder_that_the_ordinary_user_may_write_and_that_outlives_the_container() -> None:
    text, compose = read("docker/Dockerfile"), yaml.safe_load(read("docker-compose.yml"))
    folders = {service["environment"]["MEDRESTORE_JOBS"] for service in ours(compose["services"])}
    assert folders == {"/var/lib/medrestore/jobs"}
    assert "install -d -o medrestore -g medrestore -m 700 /var/lib/medrestore" in text
    given = [mount for service in ours(compose["services"]) for mount in service["volumes"]]
    mounts = [mount for mount in given if not mount.startswith("./")]
    assert all(mount.endswith(":ro") for mount in set(given) - set(mounts))
    assert [mount.partition(":")[2] for mount in mounts] == ["/var/lib/medrestore"] * 3
    assert len(set(mounts)) == 3  # a folder of jobs belongs to one service
    assert {mount.partition(":")[0] for mount in mounts} | {"orthanc"} == set(compose["volumes"])


def test_orthanc_and_the_service_know_each_other() -> None:
    services = yaml.safe_load(read("docker-compose.yml"))["services"]
    pacs, service = services["orthanc"], services["medrestore-pacs"]
    told, ours = pacs["environment"], service["environment"]
    assert re.fullmatch(r"orthancteam/orthanc:\d+\.\d+\.\d+", pacs["image"])
    assert pacs["profiles"] == service["profiles"] == ["pacs"]
    assert told["WEBHOOK_URL"] == "http://medrestore-pacs:8000/pacs/events/orthanc"
    assert told["WEBHOOK_TOKEN"] == ours["MEDRESTORE_WEBHOOK_TOKEN"] == "${WEBHOOK_TOKEN:-for-trying-out-only}"
    peer = json.loads(ours["MEDRESTORE_PACS"])["orthanc"]
    config = json.loads(read("docker/orthanc.json"))
    assert peer["url"] == peer["orthanc"] + config["DicomWeb"]["Root"].rstrip("/")
    assert peer["orthanc"] == f"http://orthanc:{config['HttpPort']}"
    assert peer["password"] == told["PACS_PASSWORD"]
    assert config["AuthenticationEnabled"] is True
    assert config["RegisteredUsers"] == {peer["user"]: "${PACS_PASSWORD}"}
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in pacs["volumes"]}
    for path in ("/etc/orthanc/orthanc.json", *config["LuaScripts"]):
        assert (ROOT / mounted[path]).is_file()
    assert config["StorageDirectory"] in mounted


def test_make_serves_without_keys_on_this_machine_alone(tmp_path: Path) -> None:
    def access(*words: str, **variables: str) -> str:
        inherited = ("MEDRESTORE_", "MAKE", "MFLAGS")  # of the `make test` that this may run under
        environment = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
        shutil.copy(ROOT / "Makefile", tmp_path)
        command = ["make", "--old-file", ".venv/serve.stamp", "serve", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    if not shutil.which("make"):
        pytest.skip("needs make")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    program = tmp_path / ".venv/bin/medrestore"
    program.write_text("#!/bin/sh\necho access=$MEDRESTORE_ACCESS\n")
    program.chmod(0o755)
    (tmp_path / ".venv/serve.stamp").touch()
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    assert access() == "access=open"
    assert access("HOST=localhost") == "access=open"
    assert access("HOST=0.0.0.0") == "access="
    assert access(MEDRESTORE_ACCESS="keys") == "access=keys"
    (tmp_path / "medrestore.toml").write_text('access = "keys"\n')
    assert access() == "access="
    assert access(MEDRESTORE_CONFIG="other.toml") == "access=open"


def test_ci_override_changes_only_services_that_exist() -> None:
    names = [set(yaml.safe_load(read(name))["services"]) for name in COMPOSE]
    assert names[1] <= names[0]


@pytest.mark.parametrize("what", REFUSED_BY_OLD_ENGINES)
def test_dockerfile_keeps_to_what_old_engines_build(what: str) -> None:
    assert not re.search(REFUSED_BY_OLD_ENGINES[what], read("docker/Dockerfile"), re.MULTILINE)


def test_image_runs_as_an_ordinary_user_and_stops_on_sigterm() -> None:
    lines = instructions()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert int(next(line for line in reversed(final) if line.startswith("USER ")).split()[1]) >= 10000
    assert "STOPSIGNAL SIGTERM" in final
    command = next(line for line in final if line.startswith("CMD "))
    assert command.startswith('CMD ["medrestore", "serve"'), "a shell as PID 1 would swallow SIGTERM"
    health = next(line for line in final if line.startswith("HEALTHCHECK "))
    assert re.search(r'CMD \["python".*/healthz/ready', health)


def test_image_switches_telemetry_off() -> None:
    environment = next(line for line in reversed(instructions()) if line.startswith("ENV "))
    assert "ORT_DISABLE_TELEMETRY=1" in environment.split()


def test_build_context_leaves_data_and_environments_out() -> None:
    patterns = [line for line in read(".dockerignore").split("\n") if line and not line.startswith("#")]
    for path in [".git/config", ".venv/bin/python", "data/a.png", "runs/denoise/last.ckpt", "tests/unit/x.py", ".env"]:
        assert ignored(path, patterns), path
    assert ignored("app/routes/__pycache__/health.pyc", patterns)


def test_build_context_holds_what_the_image_copies() -> None:
    patterns = [line for line in read(".dockerignore").split("\n") if line and not line.startswith("#")]
    copied = [word for line in instructions() if line.startswith("COPY ") and "--from" not in line
              for word in line.split()[1:-1]]  # fmt: skip
    assert {"app", "models", "medrestore.py", "pyproject.toml"} <= set(copied)
    for name in copied:
        assert not ignored(name, patterns), name
        assert (ROOT / name).exists(), name
    for path in tracked("app", "models"):
        assert not ignored(path, patterns), path


def test_git_ignores_no_bundle() -> None:
    tracked()
    for path in [
        "models/bundles/denoise/2/restore.onnx",
        "models/bundles/denoise/2/restore.ts",
        "models/networks/a.py",
    ]:
        done = subprocess.run(["git", "check-ignore", "--no-index", path], cwd=ROOT, check=False, capture_output=True)
        assert done.returncode == 1, f"{path} is ignored"


def test_exactly_one_onnxruntime_wheel_is_asked_for() -> None:
    wanted = {name: {r.name for r in requirements} & RUNTIMES for name, requirements in extras().items()}
    assert {name: runtimes for name, runtimes in wanted.items() if runtimes} == {
        "cpu": {"onnxruntime"},
        "gpu": {"onnxruntime-gpu"},
    }


def test_at_most_one_onnxruntime_wheel_is_installed() -> None:
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions() if d.metadata["Name"]}
    assert len(installed & RUNTIMES) <= 1


def test_no_core_dependency_brings_onnxruntime() -> None:
    pending = [r.name for r in extras()[""]]
    seen: set[str] = set()
    while pending:
        name = pending.pop().lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one, or for another platform
        pending += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert not seen & RUNTIMES


def test_constraints_pin_exactly_and_torch_among_them() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9.]*", line) for line in lines)
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert "torch==2.13.0" in lines


def test_constraints_fit_the_package_lists() -> None:
    pins = dict(line.split("==") for line in read("constraints.txt").splitlines() if not line.startswith("#"))
    for requirement in (r for requirements in extras().values() for r in requirements):
        if requirement.name in pins:
            assert pins[requirement.name] in requirement.specifier, requirement


def test_no_file_names_a_package_index() -> None:
    for name in ["Makefile", ".ci/run", "docker/Dockerfile", "constraints.txt", "pyproject.toml", *COMPOSE]:
        assert not re.search(r"index-url|find-links|trusted-host|//[^/\s]*(pypi|simple)", read(name)), name


@pytest.mark.parametrize("target", ["serve", "test", "lint", "bench", "faults", "train"])
def test_every_make_target_has_a_recipe(target: str) -> None:
    if not shutil.which("make"):
        pytest.skip("needs make")
    command = ["make", "--dry-run", "--always-make", target, "HOST=0.0.0.0", "PORT=9001"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "python3 -m venv .venv" in done.stdout
    assert ("--host 0.0.0.0 --port 9001" in done.stdout) == (target == "serve")


def test_ci_script_parses() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)


def test_no_python_file_is_longer_than_600_lines() -> None:
    files = [*ROOT.glob("*.py"), *(p for d in ("app", "models", "training", "tests") for p in (ROOT / d).rglob("*.py"))]
    assert len(files) > 10
    assert {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 600} == {}


def test_licences_are_stated() -> None:
    assert "Apache License" in read("LICENSE")
    assert "END OF TERMS AND CONDITIONS" in read("LICENSE")
    weights = read("models/bundles/LICENSE-WEIGHTS.md")
    assert "BSDS500" in weights
    assert "research" in weights
    assert "not a medical device" in read("README.md")


def test_shipped_weights_name_their_terms() -> None:
    for path in (ROOT / "models" / "bundles").glob("*/*/manifest.json"):
        assert "LICENSE-WEIGHTS.md" in json.loads(path.read_text(encoding="utf-8"))["licence"], path


def test_weights_travel_with_their_licence() -> None:
    shipped = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["package-data"]["models"]
    for path in [
        "bundles/denoise/2/manifest.json",
        "bundles/denoise/default.json",
        "bundles/LICENSE-WEIGHTS.md",
    ]:
        assert any(fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in shipped), path


def test_gpu_service_works_on_the_gpu() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert json.loads(services["medrestore-gpu"]["environment"]["MEDRESTORE_DEVICES"]) == ["cuda:0"]
    assert "MEDRESTORE_DEVICES" not in services["medrestore"]["environment"]
