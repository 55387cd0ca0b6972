#!/usr/bin/env bash
# Installs programs that the tests drive and that are not here yet: install-packages.sh PROGRAM=PACKAGE …
set -euo pipefail
missing=()
for pair in "$@"; do
  command -v "${pair%%=*}" >/dev/null || [ -x "/usr/sbin/${pair%%=*}" ] || missing+=("${pair#*=}")
done
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
  # nginx's package starts a server of its own.
  (command -v service >/dev/null && service nginx stop >/dev/null 2>&1) || true
else
  echo "The tests drive real programs; please install: ${missing[*]} (Debian: apt-get install ${missing[*]})." >&2
  exit 1
fi
