#!/bin/sh
# What `make demo` shows, inside a sandbox: one VM on the LAN, reached from its host and from a LAN peer.
set -eu

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show macvm image build tiny
show macvm create web1 --mode bridge --ip 192.0.2.11/24 --wait
show macvm list
printf '\nFrom the host:\n'
show curl --silent --show-error --max-time 10 http://192.0.2.11/
printf '\nFrom a LAN peer:\n'
show macvm sandbox lan -- curl --silent --show-error --max-time 10 http://192.0.2.11/
