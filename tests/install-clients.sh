#!/usr/bin/env bash
# Installs the clients that the tests drive (the official OpenAI client, DuckDB, FastAPI, …) into a virtual environment of
# its own: install-clients.sh DIR PACKAGE==VERSION …
set -euo pipefail
dir=$1
shift
mkdir -p "$(dirname "$dir")"
python3 -m venv "$dir"
echo "Installing the clients that the tests drive into $dir." >&2
"$dir/bin/pip" install --quiet --disable-pip-version-check --retries 2 --timeout 20 "$@" && exit 0
echo "pip could not install the clients that the tests drive: $*" >&2
echo "They come from PyPI, with Python 3.11 or later; this is $(python3 --version 2>&1)." >&2
echo "Without a network: have pip take them from a folder (PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR make test)." >&2
exit 1
