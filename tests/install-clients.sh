#!/usr/bin/env bash
# Installs what the tests drive from outside (the official OpenAI client, DuckDB, FastAPI, …) into a virtual environment of
# its own: install-clients.sh DIR PACKAGE==VERSION …
set -euo pipefail
dir=$1
shift
if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv
  else
    echo "The tests drive clients written in Python: please install python3 with venv (Debian: python3-venv)." >&2
    exit 1
  fi
fi
mkdir -p "$(dirname "$dir")"
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
