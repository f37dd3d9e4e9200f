#!/bin/sh
# Starts the process of Synapse that has the given name: `synapse`, the main process, or a worker,
# with `-media` in its name if it is one for media.
set -eu
name=$1
configuration=/config/$name.yaml

# (!) What a killed process left. Its lock names its process id; in a container that is the same
# each time, so Synapse would find the lock's owner, itself, alive, and not start.
rm -f "/sockets/$name.sock" "/sockets/$name.sock.lock"

if [ "$name" != synapse ]; then
    configuration=/tmp/worker.yaml
    case $name in
        *-media*) media=true resources="client, federation, media" ;;
        *) media=false resources="client, federation" ;;
    esac
    cat > "$configuration" <<END
worker_app: synapse.app.generic_worker
worker_name: $name
enable_media_repo: $media
worker_listeners:
  - type: http
    path: /sockets/$name.sock
    x_forwarded: true
    request_id_header: X-Request-ID
    resources:
      - names: [$resources]
  # For the other processes only, if shared.yaml names this one: whoever reaches it can write as any
  # user. And for the health check.
  - type: http
    port: 9093
    resources:
      - names: [replication]
END
fi

exec /start.py run -c /data/homeserver.yaml -c /config/shared.yaml -c "$configuration"
