#!/bin/sh
# The router's user-data: it forwards what is for others.
echo 1 > /proc/sys/net/ipv4/ip_forward
