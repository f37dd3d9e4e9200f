"""What /metrics might say, written down."""

URLS = (
    "http://synapse-with-a-rather-long-name.example.org:8008",
    "unix:/run/matrix-synapse/somewhere/quite/deep/generic_worker_1.sock",
)

METRICS = f"""
process_start_time_seconds 1795280000
process_resident_memory_bytes 50000000
process_cpu_seconds_total 3
process_open_fds 20
process_max_fds 20000
whoami_router_build_info{{version="0.1.0"}} 1
whoami_router_resolves_total{{source="cache"}} 12000
whoami_router_resolves_total{{source="whoami"}} 300
whoami_router_resolves_total{{source="fingerprint"}} 4
whoami_router_lookups_total{{outcome="owner"}} 300
whoami_router_lookups_total{{outcome="unavailable"}} 3
whoami_router_lookup_duration_seconds_bucket{{le="0.01"}} 300
whoami_router_lookup_duration_seconds_bucket{{le="+Inf"}} 303
whoami_router_lookups_in_flight 2
whoami_router_lookups_limit 64
whoami_router_lookups_shed_total 0
whoami_router_remembered_owners 300
whoami_router_remembered_owners_limit 1000
whoami_router_remembered_rejections 4
whoami_router_remembered_rejections_limit 10
whoami_router_synapse_away{{url="{URLS[0]}"}} 0
whoami_router_synapse_away{{url="{URLS[1]}"}} 1
whoami_router_synapse_losses_total{{url="{URLS[0]}"}} 1
whoami_router_synapse_losses_total{{url="{URLS[1]}"}} 12
"""


def answer(
    *, start=1, away=None, losses=None, resolves=None, lookups=None, **others: object
) -> str:
    """Return an answer with these values; ``others`` are metrics without labels.

    ``away`` and ``losses`` are about http://s0, http://s1 and so on.
    """
    lines = [f"process_start_time_seconds {start}"] if start is not None else []
    for name, label, values in (
        ("resolves_total", "source", (resolves or {}).items()),
        ("lookups_total", "outcome", (lookups or {}).items()),
        ("synapse_away", "url", ((f"http://s{i}", n) for i, n in enumerate(away or ()))),
        ("synapse_losses_total", "url", ((f"http://s{i}", n) for i, n in enumerate(losses or ()))),
    ):
        lines += [f'whoami_router_{name}{{{label}="{key}"}} {n}' for key, n in values]
    lines += [f"{name} {value}" for name, value in others.items()]
    return "\n".join(lines)
