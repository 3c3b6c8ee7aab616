#!/bin/sh
# make-venv.sh FOLDER "VERSIONS" REQUIREMENTS [optional]: a virtual environment from the first Python found on the PATH.
set -eu
folder=$1 versions=$2 requirements=$3 need=${4:-required}

find_python() {
  for version in $versions; do
    for name in "python$version" python3 python; do
      found=$(command -v "$name" 2>/dev/null) || continue
      # A name on the PATH may be a shim without a Python behind it, or another version: ask it.
      actual=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
      [ "$actual" = "$version" ] && { echo "$found"; return 0; }
    done
  done
  return 1
}

if ! python=$(find_python); then
  if [ "$need" = optional ]; then
    echo "make: no Python $versions on the PATH: $folder is left out, and the tests that need it will say so" >&2
    exit 0
  fi
  echo "make: edgepipe needs Python 3.11, 3.12 or 3.13 on the PATH, and none was found." >&2
  echo "      On Debian: apt install python3 python3-venv" >&2
  exit 1
fi
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "make: $python has no venv module. On Debian: apt install python3-venv" >&2
  exit 1
fi
echo "make: $folder from $python; installing $requirements (once, some minutes)" >&2
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$requirements"
