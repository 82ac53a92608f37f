#!/usr/bin/env bash
# engine.sh FOLDER: starts a Docker engine of one's own, with buildx and compose, on a socket in FOLDER, and prints the
# shell line that makes it the current one. For machines that have none, as root. It is stopped, and leaves nothing
# running, with `kill "$(cat FOLDER/pid)"`.
#
#   eval "$(scripts/containers/engine.sh FOLDER)"
#
# The engine is Debian 13's, unpacked and not installed. runc and iptables are those of the installed release, because
# the newer ones may want a newer libc. DOCKERD_FLAGS is passed on.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1")
programs=$folder/programs

need() { command -v "$1" >/dev/null || { echo "engine.sh: $1 is missing; as root: apt-get install $1" >&2; exit 1; }; }
need runc
need iptables

mkdir -p "$folder"/{packages,config/cli-plugins}
if [ ! -x "$programs/usr/sbin/dockerd" ]; then
  conf=$("$here/trixie.sh" "$folder")
  (cd "$folder/packages" && APT_CONFIG=$conf apt-get -qq download docker.io docker-cli containerd docker-buildx docker-compose)
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$programs"; done
  ln -sf "$programs"/usr/libexec/docker/cli-plugins/* "$folder/config/cli-plugins/"
fi

export PATH=$programs/usr/bin:$programs/usr/sbin:$PATH DOCKER_HOST=unix://$folder/socket
# shellcheck disable=SC2086 # the flags are words
setsid nohup dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" \
  --host "$DOCKER_HOST" ${DOCKERD_FLAGS:-} > "$folder/log" 2>&1 < /dev/null &
for _ in $(seq 300); do
  if docker version > /dev/null 2>&1; then
    echo "export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$folder/config PATH=$programs/usr/bin:\$PATH"
    exit
  fi
  sleep 0.1
done
echo "engine.sh: the engine did not answer within 30 s; the end of $folder/log:" >&2
tail -n 5 "$folder/log" >&2
exit 1
