#!/usr/bin/env bash
# Puts together, on the GPU's machine, what `python -m gpu.pack_peer` has packed.
#
#   PEER_PACKAGES=$(benchmarks/gpu/join_peer.sh benchmarks/gpu/peer-pack /tmp/peer)
#
# Keeps the parts that it finds in the first folder under the second, outside the checkout. When all
# are there and their checksums are right, it unpacks them and prints the folder of the packages.
# Exit status 75: there are more to come.
#
# PYTHON   the interpreter, python3 unless given
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: join_peer.sh PACK FOLDER" >&2
  exit 2
fi
mkdir -p "$2/parts"
cp "$1"/parts.sha256 "$1"/site.tar.xz.* "$2/parts/"
cd "$2"
while read -r _ name; do
  if [ ! -e "parts/$name" ]; then
    echo "join_peer.sh: $name is still to come" >&2
    exit 75
  fi
done <parts/parts.sha256
(cd parts && sha256sum --check --strict --quiet parts.sha256 >&2)
rm -rf site unpacked
cut -d ' ' -f 3 parts/parts.sha256 | sed 's|^|parts/|' | xargs cat | "${PYTHON:-python3}" -c '
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as archive:
    archive.extractall("unpacked", filter="data")
'
mv unpacked site
echo "$PWD/site"
