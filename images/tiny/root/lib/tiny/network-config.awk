# Prints what a cloud-init network-config (version 2) says of the NIC with the MAC `mac` (lower case), one fact a line:
#   name N | mtu N | dhcp4 | address A/P | route TO VIA | dns A
# Prints `listed` first when the NIC is there at all.
function value(text) { sub(/^[^:]*:[ ]*/, "", text); return bare(text) }
function bare(text) { gsub(/[]["',]/, " ", text); sub(/^ +/, "", text); sub(/ +$/, "", text); return text }
function fact(text) { facts = facts text "\n" }
function each(kind, text,    words, n, i) { n = split(bare(text), words, / +/); for (i = 1; i <= n; i++) fact(kind " " words[i]) }
function end_route() { if (to != "" && via != "") fact("route " to " " via); to = via = "" }
function end_nic() { end_route(); if (facts != "" && nic_mac == mac) printf "listed\n%s", facts; facts = nic_mac = section = ""; inner = -1 }
BEGIN { base = nic = inner = -1 }
{ sub(/\r$/, ""); sub(/(^|[ \t])#.*$/, "") }
/^[ ]*$/ { next }
{
    match($0, /^ */); indent = RLENGTH; line = substr($0, indent + 1)
    item = line ~ /^-( |$)/
    if (item) sub(/^- */, "", line)
    key = line; sub(/["']?:( .*)?$/, "", key); gsub(/["']/, "", key)
    has_key = line ~ /^["']?[A-Za-z0-9_-]+["']?:( |$)/
}
!item && key == "ethernets" { base = indent; nic = -1; next }
base < 0 { next }
!item && indent <= base { end_nic(); base = -1; next }
!item && (nic < 0 || indent == nic) { end_nic(); nic = indent; facts = " "; facts = ""; fact("nic " key); next }
{
    if (!item && (inner < 0 || indent == inner)) { inner = indent; end_route(); section = key }
    if (!item && has_key) below = key
    if (item && section == "routes") end_route()
    if (has_key && key == "macaddress") nic_mac = tolower(value(line))
    else if (section == "set-name") fact("name " value(line))
    else if (section == "mtu") fact("mtu " value(line))
    else if (section == "dhcp4") { if (value(line) ~ /^([Tt]rue|[Yy]es|[Oo]n)$/) fact("dhcp4") }
    else if (section == "gateway4") fact("route 0.0.0.0/0 " value(line))
    else if (section == "gateway6") fact("route ::/0 " value(line))
    else if (section == "addresses") each("address", has_key && !item ? value(line) : line)
    else if (section == "nameservers" && below == "addresses") each("dns", has_key ? value(line) : line)
    else if (section == "routes" && key == "to") to = value(line)
    else if (section == "routes" && key == "via") via = value(line)
}
END { end_nic() }
