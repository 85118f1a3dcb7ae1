#!/bin/sh
# System libraries that Python wheels do not bring. Debian names; installed when root, else the line to run is printed.
# Add one as "file-that-shows-it-is-there package".
set -eu

wanted() {
  echo "libgomp.so.1 libgomp1"   # torch and FFTW run in threads with it
  # Qt and OpenGL of the window
  echo "libEGL.so.1 libegl1"
  echo "libGL.so.1 libgl1"
  echo "libdbus-1.so.3 libdbus-1-3"
  echo "libfontconfig.so.1 libfontconfig1"
  echo "libglib-2.0.so.0 libglib2.0-0"
  echo "libxkbcommon.so.0 libxkbcommon0"
  # Qt on an X server
  echo "libxcb-cursor.so.0 libxcb-cursor0"
  echo "libxcb-icccm.so.4 libxcb-icccm4"
  echo "libxcb-keysyms.so.1 libxcb-keysyms1"
  echo "libxkbcommon-x11.so.0 libxkbcommon-x11-0"
  echo "libxcb-shape.so.0 libxcb-shape0"
  echo "libxcb-xkb.so.1 libxcb-xkb1"
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
# an X server without a screen, and a software OpenGL for it: what the tests of the window run on
command -v Xvfb >/dev/null || missing="$missing xvfb xauth libgl1-mesa-dri"
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
