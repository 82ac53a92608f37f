#!/usr/bin/env bash
# cosign.sh FOLDER: prints a folder to put on PATH, in which cosign is, as Debian 13 packages it. Nothing is installed.
# On Debian the package comes from the mirror that apt uses already, elsewhere through an image of Debian 13.
#
#   PATH=$PATH:$(scripts/containers/cosign.sh FOLDER)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1")

if found=$(command -v cosign); then
  dirname "$found"
  exit
fi
if [ ! -x "$folder/cosign" ]; then
  mkdir -p "$folder"
  if config=$("$here/trixie.sh" "$folder/apt" 2>/dev/null); then
    (cd "$folder" && APT_CONFIG=$config apt-get -qq download cosign)
    dpkg-deb --fsys-tarfile "$folder"/cosign_*.deb | tar -xO ./usr/bin/cosign > "$folder/cosign.new"
  else
    docker run --rm --network "${COSIGN_NETWORK:-bridge}" "${COSIGN_IMAGE:-python:3.13-slim-trixie}" sh -c '
      cd /tmp && apt-get -qq update >&2 && apt-get -qq download cosign >&2 &&
      dpkg-deb --fsys-tarfile cosign_*.deb | tar -xO ./usr/bin/cosign' > "$folder/cosign.new"
  fi
  chmod 755 "$folder/cosign.new"
  "$folder/cosign.new" version >/dev/null 2>&1 # whole, and runs on this machine
  mv "$folder/cosign.new" "$folder/cosign"
fi
echo "$folder"
