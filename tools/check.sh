#!/usr/bin/env bash
# The one gate: style, imports, types, and the laws of the house.
# Every check runs, even after one has failed; the exit code tells.
#   tools/check.sh         all checks
#   tools/check.sh --fix   first lets ruff correct what it can
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
bin=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
export PATH="$bin:$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1

if [[ ${1:-} == --fix ]]; then
  ruff check --quiet --fix .
  ruff format --quiet .
fi

failed=()
gate() {
  local name=$1 log
  shift
  if log=$("$@" 2>&1); then
    echo "ok    $name"
  else
    echo "FAIL  $name"
    sed 's/^/      /' <<<"$log"
    failed+=("$name")
  fi
}

gate "format (ruff format)" ruff format --check --quiet --diff .
gate "style (ruff check)" ruff check --quiet .
gate "floors (lint-imports)" lint-imports --no-cache
gate "types (pyright)" pyright --pythonpath "$(command -v "$python")"
gate "house (sizes, mirror, names)" "$python" tools/check_house.py

if ((${#failed[@]})); then
  echo "check: ${#failed[@]} failed: ${failed[*]}"
  exit 1
fi
echo "check: all passed"
