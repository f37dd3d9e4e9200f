"""Configurations that are not the shipped one, which include files of ours."""

from tests.nginx.check.edits import CACHE, ZONE
from tests.nginx.test_migration import OURS
from tests.nginx.test_readme import documented_configuration
from tests.stack.nginx import SHIPPED

OWN_ROUTER = "unix:/run/whoami-router/sock"

README = documented_configuration({})
README_FILES = OURS | {
    file: (SHIPPED / file).read_text() for file in ("snippets/debug_headers.conf", CACHE, ZONE)
}

OWN = """
    upstream router { server unix:/run/whoami-router/sock; keepalive 8; }
    upstream workers { hash $key consistent; server 10.0.0.1:8083; server 10.0.0.2:8083; }
    map $user $key { "" $http_authorization$arg_access_token; default $user; }
    server {
        listen 8448;
        error_log /dev/null emerg;
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-User-Identifier "";
        proxy_set_header X-User-Identifier-Source "";
        location = /who {
            internal;
            proxy_pass http://router/resolve;
            proxy_pass_request_headers off;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_set_header Authorization $http_authorization;
            proxy_set_header X-Original-URI $scheme://$host$request_uri;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header User-Agent $http_user_agent;
            proxy_connect_timeout 1s;
            proxy_read_timeout 2500ms;
            proxy_intercept_errors on;
            error_page 400 401 403 404 429 500 502 503 504 =204 /nobody;
        }
        location = /nobody { internal; return 204; }
        location ~ ^/_matrix/client/(?<version>r0|v3)/sync$ {
            auth_request /who;
            auth_request_set $user $upstream_http_x_user_identifier;
            proxy_next_upstream_timeout 20s;
            proxy_pass http://workers;
        }
        location /_matrix/ { proxy_pass http://127.0.0.1:8008; }
    }
"""

# Names and addresses that are nobody's here.
UNTOLD = "cannot be told from here"


def written(directory, http, *, main="", files=OURS):
    """Write a configuration of one's own; return its path."""
    for file, text in files.items():
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(text)
    path = directory / "nginx.conf"
    path.write_text(
        f"{main}\nevents {{}}\nhttp {{\naccess_log off;\ninclude conf.d/*.conf;\n{http}}}"
    )
    return path
