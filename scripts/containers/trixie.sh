#!/usr/bin/env bash
# trixie.sh FOLDER: prints the path of an apt configuration for Debian 13, kept in FOLDER and fed by the mirror that this
# machine uses already. Packages of that release can then be downloaded and unpacked, while nothing is installed.
#
#   APT_CONFIG=$(scripts/containers/trixie.sh FOLDER) apt-get download NAME
set -euo pipefail
folder=$(realpath -m "$1")
keys=/usr/share/keyrings/debian-archive-keyring.gpg

# Prints the first address, of all that apt's own sources name, that ends in the given word.
mirror() {
  { grep -hs '^URIs:' /etc/apt/sources.list.d/*.sources | cut -d: -f2-
    grep -hs '^deb ' /etc/apt/sources.list /etc/apt/sources.list.d/*.list | sed 's/\[[^]]*\]//' | cut -d' ' -f2-
  } | tr ' ' '\n' | grep -m1 "/$1/\?$" || true
}

archive=$(mirror debian)
security=$(mirror debian-security)
[ -n "$archive" ] || { echo "trixie.sh: apt's sources name no Debian mirror (an address that ends in /debian)" >&2; exit 1; }
mkdir -p "$folder"/apt/{lists,archives}/partial
: > "$folder/apt/status" # nothing is installed there, so nothing is held back
{
  echo "deb [signed-by=$keys] $archive trixie main"
  echo "deb [signed-by=$keys] $archive trixie-updates main"
  [ -z "$security" ] || echo "deb [signed-by=$keys] $security trixie-security main"
} > "$folder/sources.list"
cat > "$folder/apt.conf" <<END
APT::Architecture "$(dpkg --print-architecture)";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::Cache "$folder/apt";
Dir::Cache::archives "$folder/apt/archives";
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
END
APT_CONFIG=$folder/apt.conf apt-get -qq update >&2
echo "$folder/apt.conf"
