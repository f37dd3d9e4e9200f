"""Stand-ins for Synapse, whose own speed is not the question: one nginx that answers at once."""

import os
from pathlib import Path

from tests.stack.nginx import temporary_files_in
from tests.stack.process import Process, accepts, free_port

# Taken out: nginx has a use of its own for this variable, and would take ours for sockets.
_named = os.environ.pop("NGINX", "nginx")
NGINX = str(Path(_named).absolute()) if "/" in _named else _named
"""The nginx that all but real syncs are measured with."""

# What a worker answers is as long as Synapse's answer to a sync without news, and has the
# headers that Synapse sends. It names its port, so that one can see where a request went.
#
# A whoami that is asked about no token, or not one of Synapse's own, refuses it; each answer
# is a byte in the log.
_EMPTY_SYNC = (
    '{"next_batch":"s726592_8571043_1139_5288_77_4_912_1_0_1","worker":"$server_port",'
    '"device_one_time_keys_count":{"signed_curve25519":50},'
    '"device_unused_fallback_key_types":["signed_curve25519"]}'
)
_CONFIGURATION = """\
worker_processes 1;
worker_rlimit_nofile 8192;
pid {directory}/nginx.pid;
error_log stderr emerg;

events {{
    worker_connections 4096;
}}

http {{
    {temporary_files}

    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    server_tokens off;

    map $http_authorization $localpart {{
        "~^Bearer syt_(?<name>[^_]+)_" $name;
    }}
    log_format count "";

    server {{
        listen {whoami} backlog=4096;
        location = /_matrix/client/v3/account/whoami {{
            access_log {directory}/whoami.count count;
            if ($localpart = "") {{
                return 401 '{{"errcode":"M_UNKNOWN_TOKEN","error":"Unknown token"}}';
            }}
            return 200 '{{"user_id":"@$localpart:example.org","device_id":"BENCH"}}';
        }}
    }}
    server {{
        listen {workers[0]} backlog=4096;
        listen {workers[1]} backlog=4096;
        add_header Cache-Control "no-cache, no-store, must-revalidate";
        add_header Access-Control-Allow-Origin "*";
        add_header Access-Control-Allow-Methods "GET, HEAD, POST, PUT, DELETE, OPTIONS";
        add_header Access-Control-Allow-Headers
            "X-Requested-With, Content-Type, Authorization, Date";
        add_header Access-Control-Expose-Headers "Synapse-Trace-Id, Server";
        return 200 '{empty_sync}';
    }}
}}
"""


class Standins(Process):
    """Synapse's whoami and two of its workers, as one nginx process that computes nothing.

    ``whoami`` and ``workers`` are their addresses, ``host:port``. A token is its owner's by its
    text: that of ``syt_<text>_...`` is ``@<text>:example.org``, not decoded.
    """

    def __init__(self, directory: Path) -> None:
        self.whoami = f"127.0.0.1:{free_port()}"
        self.workers = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
        self._count = directory / "whoami.count"
        configuration = directory / "standins.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                temporary_files=temporary_files_in(directory),
                whoami=self.whoami,
                workers=self.workers,
                empty_sync=_EMPTY_SYNC,
            )
        )
        super().__init__(
            "the stand-ins for Synapse",
            [NGINX, "-e", "stderr", "-c", configuration, "-g", "daemon off;"],
            directory / "standins.log",
            ready=lambda: all(map(accepts, (self.whoami, *self.workers))),
        )

    def asked(self) -> int:
        """Return how many times whoami has been asked."""
        return self._count.stat().st_size  # a line break each
