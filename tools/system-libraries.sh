#!/bin/sh
# System libraries that Python wheels do not bring. Debian names; installed when root, else the line to run is printed.
# Add one as "file-that-shows-it-is-there package"; the window will need its own list here.
set -eu

wanted() {
  echo "libgomp.so.1 libgomp1"   # torch and FFTW run in threads with it
}

missing=""
libraries=$(ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null || true)
[ -n "$libraries" ] || exit 0    # not a Linux with ldconfig: nothing to check
while read -r file package; do
  case "$libraries" in
    *"$file"*) ;;
    *) missing="$missing $package" ;;
  esac
done <<LIST
$(wanted)
LIST
"${PYTHON:-python3}" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
else
  echo "missing system libraries; run: sudo apt-get install$missing" >&2
  exit 1
fi
