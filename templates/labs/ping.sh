#!/bin/sh
# The labs' user-data: each VM gets a page that pings whom you name, and says who answered.
#   curl 'http://192.0.2.11/cgi-bin/ping?192.0.2.12,2001:db8::1'
# Debian's busybox, which the tiny image is made of, serves /www; another image needs a web server for it.
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/ping <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\n\n'
for address in $(echo "$QUERY_STRING" | tr , ' '); do
    case $address in *[!0-9a-f.:]*) continue ;; esac
    (ping -c 2 -W 2 "$address" > /dev/null 2>&1 && echo "$address yes" || echo "$address no") &
done
wait
END
chmod 755 /www/cgi-bin/ping
