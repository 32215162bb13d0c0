#!/usr/bin/env bash
# Installs the lock files into one environment: requirements/install.sh PYTHON cpu|gpu [dev]
# The Makefile and the Dockerfile both call it, so that a container runs what the tests ran. It installs no more and
# no less than the locks name (--no-deps), from wheels only: no compiler, and no code of a package runs here.
# Fails with pip's own message and a non-zero status; running it again takes up where it stopped.
set -euo pipefail
cd "$(dirname "$0")"

python=$1
engine=$2
extra=${3:-}
started=$SECONDS

say() { echo "batchd install: $*"; }

# -qq hides what needs no reader: progress bars, and notes about indexes and newer versions of pip. Errors still show.
install() { "$python" -m pip install -qq --no-input --disable-pip-version-check --no-deps --only-binary :all: "$@"; }

if [ "$engine" = cpu ]; then
  if ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    say "libnuma.so.1 is missing, and vLLM's CPU build needs it: apt-get install libnuma1" >&2
    exit 1
  fi
  torch=$(grep -o '^torch==[^ ]*' cpu.lock)
  say "1/3 PyTorch for CPU, $torch: 190 MB"
  # PyPI carries no +cpu build. An index or a folder that pip is configured with may, and then we need no other.
  if ! first_try=$(install "$torch" 2>&1); then
    if ! install --index-url https://download.pytorch.org/whl/cpu "$torch"; then
      say "$torch was not found by pip as it is configured either:" >&2
      echo "$first_try" >&2
      exit 1
    fi
  fi
else
  say "1/3 PyTorch for CUDA comes with the next step"
fi

say "2/3 vLLM, Ray and what they need: $(grep -c == "$engine.lock") packages, a few minutes the first time"
install -r "$engine.lock"

if [ "$extra" = dev ]; then
  say "3/3 tools for tests, lint and types"
  install -r dev.lock
else
  say "3/3 no tools for tests asked for"
fi

# The locks leave out what cpu-excludes.txt names, so that pip misses exactly those. Anything else is a broken lock.
expected=$(sed -E 's/ *#.*//; /^$/d' cpu-excludes.txt | paste -sd '|' -)
conflicts=$("$python" -m pip check --disable-pip-version-check 2>/dev/null || true)
case $engine in
  cpu) conflicts=$(grep -vE "requires ($expected), which is not installed\.$" <<< "$conflicts" || true) ;;
esac
conflicts=$(grep -v '^No broken requirements found\.$' <<< "$conflicts" || true)
if [ -n "$conflicts" ]; then
  say "the lock files contradict themselves:" >&2
  echo "$conflicts" >&2
  exit 1
fi
say "done in $((SECONDS - started)) s"
