#!/bin/sh
# Lays out the files of the image: lay.sh BINARY FOLDER
#
# The program, the libraries that it is linked with (none where it is static),
# and the system's root certificates. There is no shell and nothing else.
set -eu
binary=$1
root=$2
roots=${ROOTS:-/etc/ssl/certs/ca-certificates.crt}

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs" "$root/run/retryscope" "$root/var/lib/retryscope" "$root/tmp"
chmod 1777 "$root/tmp"
install -m 755 "$binary" "$root/usr/bin/retryscope"
install -m 644 "$roots" "$root/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0:root:/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
ldd "$binary" 2>/dev/null | grep -o '/[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    install -m 755 "$(readlink -f "$library")" "$root$library"
done
