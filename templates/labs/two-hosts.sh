#!/bin/sh
# The classic lab across two KVM hosts on one switch: each has one VM, and all four reach one another.
#   macvm sandbox run --hosts 2 -- templates/labs/two-hosts.sh
# On hosts of your own: `macvm lab up two-hosts.yaml web1` on the one, web2 on the other.
set -eu
lab=$(dirname "$0")/two-hosts.yaml

for number in 1 2; do
    macvm sandbox host "$number" -- macvm image build tiny -q
    macvm sandbox host "$number" -- macvm lab up "$lab" "web$number" --wait
done

# The VMs' pages are there a moment after their first ping.
page() {
    until curl --silent --fail --max-time 10 "$1"; do sleep 0.3; done
}
printf 'web1 pings web2: '
page http://192.0.2.11/cgi-bin/ping?192.0.2.12
printf 'web2 pings web1: '
page http://192.0.2.12/cgi-bin/ping?192.0.2.11
printf 'the other host reaches web1: '
macvm sandbox host 2 -- curl --silent --max-time 10 http://192.0.2.11/cgi-bin/ping?192.0.2.3
