#!/usr/bin/env bash
# Installs nginx, which the tests put before the gateway.
set -euo pipefail
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nginx-light
  # The package starts a server of its own.
  (command -v service >/dev/null && service nginx stop >/dev/null 2>&1) || true
else
  echo "The tests drive a real nginx: please install it (Debian: apt-get install nginx-light)." >&2
  exit 1
fi
