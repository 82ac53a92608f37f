#!/usr/bin/env bash
# standins.sh FOLDER: puts stand-ins for the three base images of the Dockerfiles into the engine, made of Debian 13's
# packages and the wheel of uv, for machines that reach no container registry. FOLDER keeps them for the next time.
#
#   gcr.io/distroless/cc-debian13:nonroot   the files of its packages and their records; no maintainer script ran
#   python:3.13-slim-trixie                 Debian's minimal system, with its CPython moved to /usr/local, and pip
#   ghcr.io/astral-sh/uv:VERSION            the wheel's programs
#
# Where they differ from the real ones: CPython is Debian's build of 3.13 and has no libpython.so; uv is linked to libc; the CA
# bundle of the second is this machine's, so that a build gets through a proxy that this machine trusts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(realpath -m "$1")
template=$here/../../template
uv_image=$(sed -n 's/^ARG UV_IMAGE=//p' "$template"/*"if enable_security_hardening"*Dockerfile*)
cc_image=gcr.io/distroless/cc-debian13:nonroot
python_image=python:3.13-slim-trixie
archive=$folder/$(cat "$0" "$here/trixie.sh" | sha256sum | cut -c1-16)-${uv_image##*:}.tar

if [ -s "$archive" ]; then docker load --quiet --input "$archive"; exit; fi
command -v mmdebstrap >/dev/null || { echo "standins.sh: mmdebstrap is missing; as root: apt-get install mmdebstrap" >&2; exit 1; }

cc_packages="base-files netbase tzdata tzdata-legacy media-types libc6 libssl3t64 libzstd1 zlib1g libgomp1 libstdc++6 libgcc-s1 gcc-14-base"
python_packages="libpython3.13-minimal libpython3.13-stdlib python3.13-minimal"
slim_packages=ca-certificates,netbase,tzdata,media-types,libssl3t64,libsqlite3-0,libffi8,libexpat1,libbz2-1.0,liblzma5,libuuid1
slim_packages+=,libreadline8t64,libncursesw6,libdb5.3t64,libzstd1,zlib1g

mkdir -p "$folder"
work=$(mktemp -d "$folder/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work"/{packages,python,cc,uv}
conf=$("$here/trixie.sh" "$folder")
# shellcheck disable=SC2086 # the lists are words
(cd "$work/packages" && APT_CONFIG=$conf apt-get -qq download $cc_packages $python_packages ca-certificates)
package() { echo "$work/packages/$1"_*.deb; }
layer() { tar --sort=name --mtime=@0 --numeric-owner -C "$1" -c .; }
import() { docker import --change 'LABEL standin=1' "$@" > /dev/null; }

# CPython, where the official image has it. The frozen site module looks for dist-packages, which becomes a link.
for name in $python_packages; do dpkg-deb -x "$(package "$name")" "$work/debian-python"; done
library=$work/python/usr/local/lib/python3.13
mkdir -p "$work/python/usr/local/bin" "$(dirname "$library")" "$work/python/etc/ssl/certs"
mv "$work/debian-python/usr/lib/python3.13" "$library"
mv "$work/debian-python/usr/bin/python3.13" "$work/python/usr/local/bin/"
ln -s python3.13 "$work/python/usr/local/bin/python3"
ln -s python3.13 "$work/python/usr/local/bin/python"
mkdir "$library/site-packages"
ln -s site-packages "$library/dist-packages"
rm -f "$library/EXTERNALLY-MANAGED" "$library/sitecustomize.py"
sed -i "s/'DEB_PYTHON_INSTALL_LAYOUT', 'posix_local'/'DEB_PYTHON_INSTALL_LAYOUT', 'posix_prefix'/
        s/prefix_scheme = 'posix_local'/prefix_scheme = 'posix_prefix'/" "$library/sysconfig/__init__.py"
python3 -m pip -q download --no-deps --only-binary :all: --dest "$work/wheel" pip
python3 -m zipfile -e "$work"/wheel/pip-*.whl "$library/site-packages"
printf '#!/usr/local/bin/python3\nfrom pip._internal.cli.main import main\nmain()\n' > "$work/python/usr/local/bin/pip"
chmod 755 "$work/python/usr/local/bin/pip"
cp "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$work/python/etc/ssl/certs/ca-certificates.crt"
chmod 644 "$work/python/etc/ssl/certs/ca-certificates.crt"
layer "$work/python" > "$work/python.tar"
mmdebstrap --quiet --variant=minbase --mode=root --include="$slim_packages" --dpkgopt=force-unsafe-io \
  --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
  --customize-hook="tar-in $work/python.tar /" trixie "$work/slim.tar" - < "$folder/sources.list" &
slim=$!

# Distroless: what its packages hold, their records in status.d, three users, and the CA bundle.
mkdir -p "$work/cc/var/lib/dpkg/status.d" "$work/cc/etc/ssl/certs"
for name in $cc_packages; do
  dpkg-deb --fsys-tarfile "$(package "$name")" | tar -x -C "$work/cc" --keep-directory-symlink
  dpkg-deb --field "$(package "$name")" > "$work/cc/var/lib/dpkg/status.d/$name"
  dpkg-deb --ctrl-tarfile "$(package "$name")" | tar -xO ./md5sums > "$work/cc/var/lib/dpkg/status.d/$name.md5sums"
done
dpkg-deb -x "$(package ca-certificates)" "$work/ca"
find "$work/ca/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat > "$work/cc/etc/ssl/certs/ca-certificates.crt"
for user in root:0:/root nobody:65534:/nonexistent nonroot:65532:/home/nonroot; do
  IFS=: read -r name id home <<< "$user"
  echo "$name:x:$id:$id:$name:$home:/sbin/nologin" >> "$work/cc/etc/passwd"
  echo "$name:x:$id:" >> "$work/cc/etc/group"
done
echo 'hosts: files dns' > "$work/cc/etc/nsswitch.conf"
install -d -m 700 "$work/cc/root"
install -d -m 755 "$work/cc/home"
install -d -m 700 -o 65532 -g 65532 "$work/cc/home/nonroot"
install -d -m 1777 "$work/cc/tmp"
chmod 755 "$work/cc"
layer "$work/cc" | import --change 'USER 65532' --change 'WORKDIR /home/nonroot' \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' - "$cc_image"

python3 -m pip -q download --no-deps --only-binary :all: --dest "$work/wheel" "uv==${uv_image##*:}"
python3 -m zipfile -e "$work"/wheel/uv-*.whl "$work/wheel/x"
install -m 755 "$work"/wheel/x/uv-*.data/scripts/uv* "$work/uv/"
layer "$work/uv" | import --change 'ENTRYPOINT ["/uv"]' - "$uv_image"

wait $slim
import --change 'CMD ["python3"]' --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
  "$work/slim.tar" "$python_image"
docker save --output "$archive.new" "$cc_image" "$python_image" "$uv_image"
mv "$archive.new" "$archive"
echo "$cc_image $python_image $uv_image"
