#!/usr/bin/env bash
# Make .venv with everything this repository needs; does nothing when it is already there.
# PYTHON names the interpreter to use (3.10 or newer); VENV another place for the environment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
stamp=$venv/.installed
wanted=$(cat setup.py pyproject.toml scripts/setup_env.sh | sha256sum | cut -d' ' -f1)
if [[ -f $stamp && $(cat "$stamp") == "$wanted $PWD" ]]; then
  exit 0
fi

python=${PYTHON:-}
if [[ -z $python ]]; then
  for candidate in python3.12 python3.11 python3.10 python3 python; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  echo "$0: needs Python 3.10 or newer; install one, or name it: PYTHON=/path/to/python3 $0" >&2
  exit 2
fi

echo "Setting up $venv with $("$python" --version) (PyTorch is large: this takes a few minutes)"
[[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip setuptools wheel
# Two distributions of OpenCV write the same folder: an environment of before has the smaller one.
if "$venv/bin/python" -m pip show --quiet opencv-python-headless 2>/dev/null; then
  "$venv/bin/python" -m pip uninstall --quiet --yes opencv-python-headless opencv-contrib-python-headless
fi
"$venv/bin/python" -m pip install --quiet --editable '.[dev]'
echo "$wanted $PWD" > "$stamp"
echo "Ready: source $venv/bin/activate"
