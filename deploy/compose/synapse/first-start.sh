#!/bin/sh
# Makes what must not be in a repository, in volumes: Synapse's own configuration with its
# secrets, its signing key, and the password of PostgreSQL. What exists already stays.
set -eu

/start.py generate

# Only for its readers: PostgreSQL's entry point, which is root, and Synapse, which is 991.
umask 077
if [ ! -s /secrets/postgres-password ]; then
    python -c 'import secrets; print(secrets.token_hex(32))' > /secrets/postgres-password
fi
printf '*:*:*:*:%s\n' "$(cat /secrets/postgres-password)" > /secrets/pgpass
chown 991:991 /secrets/pgpass

# Synapse, whoami-router and nginx, each a user of its own, make or open sockets here.
chmod 1777 /sockets
