#!/bin/sh
# VMs by the dozen, in a script: spin-up.sh [COUNT], ten without. Then their names, MACs and addresses, a line each.
#   macvm delete --lab spin-up      takes them away again
set -eu
count=${1:-10}

names=$(macvm create node --count "$count" --image tiny --memory 96 --ip 192.0.2.71/24 --lab spin-up -o name)

for name in $names; do
    # At once here, where macvm chose the addresses; with --ip dhcp it waits until the guest was heard.
    address=$(macvm ip "$name" --wait=120)
    mac=$(macvm list "$name" -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["nics"][0]["mac"])')
    echo "$name $mac $address"
done

# All side by side, and not one after the other.
macvm wait $names --for ping --timeout 5m --quiet
