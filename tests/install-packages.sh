#!/usr/bin/env bash
# Installs what the tests drive and what is not here yet: install-packages.sh PROGRAM=PACKAGE …
# `venv` is not a program, but Python's module for virtual environments.
set -euo pipefail

is_here() {
  case $1 in
    venv) python3 -c 'import venv, ensurepip' 2>/dev/null ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
  esac
}

missing=()
for pair in "$@"; do
  is_here "${pair%%=*}" || missing+=("${pair#*=}")
done
[ ${#missing[@]} = 0 ] && exit 0

give_up() {
  echo "The tests drive real programs, and some are not here: ${missing[*]} (names of Debian's packages)." >&2
  echo "$1" >&2
  exit 1
}

by_hand="On Debian or Ubuntu: sudo apt-get update && sudo apt-get install ${missing[*]}. Then run this again."
command -v apt-get >/dev/null || give_up "There is no apt-get to install them with; please install them as your system does."
[ "$(id -u)" = 0 ] || give_up "Only root can install them. $by_hand"
echo "Installing ${missing[*]}, which the tests drive." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || give_up "apt-get update failed; is there a network? $by_hand"
apt-get install -y -qq "${missing[@]}" >/dev/null || give_up "apt-get install failed. $by_hand"
# nginx's package starts a server of its own.
(command -v service >/dev/null && service nginx stop >/dev/null 2>&1) || true
