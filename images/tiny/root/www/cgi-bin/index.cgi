#!/bin/sh
# Who answers here: the host name, then each address with its NIC.
printf 'Content-Type: text/plain\r\n\r\n'
hostname
ip -o address show scope global | awk '{ print $4, $2 }'
