#!/usr/bin/env bash
# Builds the package, installs its wheel into a fresh environment, and uses it outside the checkout:
# first with what the core brings, then with what figures and ONNX files take.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 JAX_PLATFORMS=cpu
unset PYTHONPATH

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }
fail() {
  echo "wheel.sh: $*" >&2
  exit 1
}

# From the sdist, as people who have no wheel get it; of a copy, so that the checkout stays clean.
git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents --no-dereference -t "$place/")
mkdir "$place/away"
cd "$place/away"
python3 -m build --outdir "$place/dist" "$place" >"$place/build.log" 2>&1 || fail "$(cat "$place/build.log")"
wheel=$(ls "$place"/dist/*.whl)
for file in configs/quickstart.py configs/architectures/spvit_deit_base.json py.typed \
  models/packaged/deit_fashion_mnist/config.json data/packaged/fashion_mnist_test.npz; do
  python3 -m zipfile -l "$wheel" >list.txt
  grep -q "spvit_jax/$file" list.txt || fail "the wheel lacks $file"
  python3 -m tarfile -l "$place"/dist/*.tar.gz >list.txt
  grep -q "spvit_jax/$file" list.txt || fail "the sdist lacks $file"
done
say "built $(du -h "$wheel" | cut -f1)"

python3 -m venv "$place/venv"
export PATH="$place/venv/bin:$PATH"
pip install --quiet "$wheel"
say "installed, $(du -sm "$place"/venv/lib/python3*/site-packages | cut -f1) MB"
for name in tensorflow_datasets matplotlib onnx; do
  python -c "import importlib.util as u, sys; sys.exit(u.find_spec('$name') is not None)" ||
    fail "the core brings $name"
done
for name in spvit spvit-{predict,export,measure,convert,prepare,prices,plan}; do
  "$name" --help >help.txt || fail "$name --help"
  [[ -s help.txt ]] || fail "$name --help says nothing"
done
say "commands"

python - <<'END'
import numpy as np
import spvit_jax as spvit
from spvit_jax.data import package

dense = spvit.load("packaged:deit_fashion_mnist")
images, _ = package.read("fashion_mnist", "test")
small = spvit.compress(dense, images[:32], macs=0.5, axes=("ffn",), progress=False)
spvit.save(small, "small.safetensors")
spvit.export(small, "small.stablehlo")
assert spvit.load("small.safetensors").architecture == small.architecture
END
spvit-predict small.safetensors "$place"/docs/quickstart.png --top 1 | grep -q % || fail "predict"
say "the five lines, of the core"

if spvit --config=quickstart:tiny --workdir=run 2>message.txt; then fail "a figure of nothing"; fi
grep -q "pip install 'spvit_jax\[reports\]'" message.txt || fail "$(cat message.txt)"
pip install --quiet matplotlib onnx onnxruntime
if spvit --config=deit_s --workdir=run 2>message.txt; then fail "images from nowhere"; fi
grep -q "pip install 'spvit_jax\[tfds\]'" message.txt || fail "$(cat message.txt)"
spvit --config=quickstart:tiny --config.stage=evaluate --workdir=run >/dev/null 2>message.txt ||
  fail "$(cat message.txt)"
[[ -s run/confusion.png ]] || fail "no figure"
python -c "
import spvit_jax as spvit
spvit.export(spvit.load('small.safetensors'), 'small.onnx')"
[[ -s small.onnx ]] || fail "no ONNX file"
say "a run and an ONNX file, with the extras"
