#!/bin/sh
# check_wheel.sh [PYTHON]: build the wheel, install it into a fresh environment outside the repository, and run the
# first commands and the demo there. PYTHON has edgepipe's dependencies installed; nothing is downloaded.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${1:-$repository/.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir "$work/dist" "$repository"
"$python" -m venv --without-pip "$work/venv"
# The dependencies are those of PYTHON; edgepipe itself comes from the wheel alone, which stands before them.
site=$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m pip install --quiet --no-deps --no-index --target "$site" "$work"/dist/edgepipe-*.whl
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/dependencies.pth"

cd "$work"
run() { "$work/venv/bin/python" -m edgepipe "$@"; }
where=$("$work/venv/bin/python" -c 'import edgepipe; print(edgepipe.__file__)')
case $where in
  "$site"/*) ;;
  *) echo "check_wheel: imported $where, not the wheel" >&2; exit 1 ;;
esac
run --version
run device list >/dev/null
run stages >/dev/null
run pipelines list >/dev/null
run pipelines copy digits own.yaml
run check digits own.yaml
run run digits --cache-dir cache --quiet >report.txt
tail -n 3 report.txt
run run own.yaml --cache-dir cache --quiet --json >report.json
grep -q '"status": "cached"' report.json
if grep -q '"status": "ran"' report.json; then
  echo "check_wheel: the second run was not cached" >&2
  exit 1
fi
run verify runs/digits/latest/model.tflite --device nucleo-l4r5zi --max ram=64KiB --integer-only >/dev/null
echo "check_wheel: the wheel runs the demo"
