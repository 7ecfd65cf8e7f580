#!/bin/sh
# `make deb`: a Debian package of this checkout in dist/, built beside it by Debian's own tools.
set -eu
cd "$(dirname "$0")/.."
command -v dpkg-buildpackage >/dev/null || { echo 'error: dpkg-buildpackage is missing: apt install dpkg-dev' >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
seconds=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
tree=build/deb/macvm-$version
rm -rf build/deb
mkdir -p "$tree" dist
tar -c --exclude=__pycache__ README.md pyproject.toml provisioner templates images packaging | tar -x -C "$tree"
mv "$tree/packaging/debian" "$tree/debian"
maintainer=$(sed -n 's/^Maintainer: //p' "$tree/debian/control")
printf 'macvm (%s) unstable; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' \
  "$version" "$version" "$maintainer" "$(LC_ALL=C date -u -R -d "@$seconds")" >"$tree/debian/changelog"
(cd "$tree" && dpkg-buildpackage -us -uc -b >../log 2>&1) || { tail -n 20 build/deb/log >&2; exit 1; }
mv build/deb/macvm_*.deb dist/
ls dist/macvm_"$version"_*.deb
