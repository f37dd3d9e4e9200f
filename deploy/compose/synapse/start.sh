#!/bin/sh
# Starts the process of Synapse whose file here has the name that is given.
set -eu
# (!) What a killed process left. Its lock names its process id; in a container that is the same
# each time, so Synapse would find the lock's owner, itself, alive, and not start.
rm -f "/sockets/$1.sock" "/sockets/$1.sock.lock"
exec /start.py run -c /data/homeserver.yaml -c /config/shared.yaml -c "/config/$1.yaml"
