#!/usr/bin/env bash
# The crash tests mount disks of their own, whose power they cut and which they fill up. That takes root, mount and /dev/fuse.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
  [ -n "${TOLLGATE_CRASH_MAY_SKIP_POWER:-}" ] && exit 0
  echo "The power cuts mount a disk of their own: run this as root, or set TOLLGATE_CRASH_MAY_SKIP_POWER=1 to go without." >&2
  exit 1
fi
if [ ! -c /dev/fuse ]; then
  # The module may be built in, and the device missing in a container all the same.
  modprobe fuse 2>/dev/null || true
  [ -c /dev/fuse ] || mknod -m 666 /dev/fuse c 10 229 || true
fi
