"""Which alerts fire, and which do not: Prometheus's own promtool says it of made-up histories."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from whoami_router.resolver import Source

PROMETHEUS = Path(__file__).parents[2] / "deploy/prometheus"
RULES = PROMETHEUS / "whoami-router.rules.yml"

ROUTER = 'job="whoami-router",instance="router"'
MTAIL = 'job="whoami-router-mtail",instance="mtail"'
OUTCOMES = ("owner", "rejected", "unavailable", "unanswerable", "left_alone", "error")

# Values as promtool reads them, one a minute: a start, what is added each time, how often.
NEVER = ALWAYS_ZERO = "0x200"
ALWAYS_ONE = "1x200"


def per_second(rate):
    return f"0+{60 * rate}x200"


def promtool(*words):
    return subprocess.run(["promtool", *words], check=False, capture_output=True, text=True)


def labelled(name, label, values, known):
    """Return a counter for each known value of a label: those not named stay at zero."""
    return {f'{name}{{{label}="{value}",{ROUTER}}}': values.get(value, NEVER) for value in known}


def resolves(**sources):
    return labelled("whoami_router_resolves_total", "source", sources, [*Source, "error"])


def lookups(**outcomes):
    return labelled("whoami_router_lookups_total", "outcome", outcomes, OUTCOMES)


def durations(every, *, below_half_a_second):
    name = "whoami_router_lookup_duration_seconds"
    return {
        f'{name}_bucket{{le="0.5",{ROUTER}}}': below_half_a_second,
        f'{name}_bucket{{le="1",{ROUTER}}}': every,
        f'{name}_bucket{{le="+Inf",{ROUTER}}}': every,
        f"{name}_count{{{ROUTER}}}": every,
    }


def router(name, values):
    return {f"{name}{{{ROUTER}}}": values}


def started(at):
    return router("process_start_time_seconds", at)


def shed(values):
    return router("whoami_router_lookups_shed_total", values)


def evicted(values):
    return router("whoami_router_remembered_owners_evicted_total", values)


def away(first, second=ALWAYS_ZERO):
    name = "whoami_router_synapse_away"
    return {
        f'{name}{{url="http://first:8008",{ROUTER}}}': first,
        f'{name}{{url="http://second:8008",{ROUTER}}}': second,
    }


def routed(*, answered="0+600x200", unavailable=NEVER, preflights=NEVER):
    """Return what mtail counts: syncs, with the questions of browsers about them, and all else."""
    name = "nginx_routed_requests_total"
    return {
        f'{name}{{source="cache",pool="synapse_sync",{MTAIL}}}': answered,
        f'{name}{{source="unavailable",pool="synapse_sync",{MTAIL}}}': unavailable,
        f'{name}{{source="not_asked",pool="synapse_sync",{MTAIL}}}': preflights,
        f'{name}{{source="not_asked",pool="synapse_main",{MTAIL}}}': per_second(50),
    }


def unlogged(history):
    """Return a history in which mtail reads no line that it understands."""
    return {name: history[name] for name in history if "nginx_routed" not in name}


def failed(values, pool="synapse_sync"):
    name = "nginx_routed_errors_total"
    return {f'{name}{{answered_by="nginx",pool="{pool}",{MTAIL}}}': values}


def unread(values):
    return {f"nginx_unread_lines_total{{{MTAIL}}}": values}


WELL = {
    f"up{{{ROUTER}}}": ALWAYS_ONE,
    f"up{{{MTAIL}}}": ALWAYS_ONE,
    f'whoami_router_build_info{{version="0.1.0",{ROUTER}}}': ALWAYS_ONE,
    **started(ALWAYS_ZERO),
    **resolves(cache=per_second(9), whoami=per_second(1), rejected="0+5x200", none="0+5x200"),
    **lookups(owner=per_second(1), rejected="0+5x200"),
    **durations(per_second(1), below_half_a_second=per_second(1)),
    **shed(NEVER),
    **evicted(NEVER),
    **away(ALWAYS_ZERO),
    **router("process_open_fds", "50x200"),
    **router("process_max_fds", "1024x200"),
    **routed(preflights="0+60x200"),
    **failed(NEVER),
    **unread(NEVER),
}
IDLE = {
    **WELL,
    **resolves(),
    **lookups(),
    **durations(NEVER, below_half_a_second=NEVER),
    **routed(answered=NEVER),
}
# In ten minutes 30,000 tokens, three of four requests without room for a lookup.
STARTED = {
    **IDLE,
    **resolves(
        whoami="0+3000x10 30000x190", fingerprint="0+9000x7 63000x193", cache="0x10 0+12000x190"
    ),
    **lookups(owner="0+3000x10 30000x190"),
    **durations("0+3000x10 30000x190", below_half_a_second=NEVER),
    **shed("0+9000x7 63000x193"),
}
RESTARTED = {
    **WELL,
    **started("0x60 3600x140"),
    **resolves(cache=f"0+540x60 {per_second(9)}", stale="0x60 0+60x3 180x140"),
    **away("0x60 1x0 0x140", "0x60 1x0 0x140"),
    **routed(unavailable="0x60 20x140"),
}
OTHERS = {
    'up{job="other",instance="other"}': ALWAYS_ZERO,
    'process_open_fds{job="other",instance="other"}': "1000x200",
    'process_max_fds{job="other",instance="other"}': "1024x200",
    'process_start_time_seconds{job="other",instance="other"}': "0+60x200",
}
HALF_NEW = {
    **WELL,
    **resolves(cache=per_second(5), whoami=per_second(5)),
    **lookups(owner=per_second(5)),
}
SYNAPSE_AWAY = {
    **IDLE,
    **lookups(left_alone=per_second(10), unavailable="0+6x200"),
    **away(ALWAYS_ONE, ALWAYS_ONE),
}

SILENT = {
    "all is well": WELL,
    "nobody asks anything": IDLE,
    "after a start everybody is new": STARTED,
    "the router is restarted, and Synapse is": RESTARTED,
    "nothing is known of nginx": {name: WELL[name] for name in WELL if MTAIL not in name},
    "nginx misses the answers of one moment": {
        **WELL,
        **routed(answered="0+6x200", unavailable="0x30 500x170"),
    },
    "tokens name their users, as --native-tokens=decode wants it": {
        **IDLE,
        **resolves(token=per_second(10), cache="0+6x200"),
    },
    "tokens are forgotten that nobody uses any more": {**WELL, **evicted(per_second(1))},
    "Synapse fails over each of the few lookups, and slowly": {
        **IDLE,
        **resolves(cache=per_second(1)),
        **lookups(unanswerable="0+1x200"),
        **durations("0+1x200", below_half_a_second=NEVER),
    },
    "a few requests are with new tokens, which are forgotten": {
        **WELL,
        **resolves(cache="0+10x200", whoami="0+10x200"),
        **lookups(owner="0+10x200"),
        **evicted("0+10x200"),
    },
    "another program is down, restarts, and has hardly a descriptor": {**WELL, **OTHERS},
}

# Of one client, which asks twice a minute.
BOT = "0+2x200"
# What `check --only router` makes of a process, every five seconds, and Prometheus of a second one.
CHECKED = "0+12x200"
SECOND = 'job="whoami-router",instance="second"'
CHECKED_TWICE = {
    **resolves(none=CHECKED),
    f'whoami_router_resolves_total{{source="none",{SECOND}}}': CHECKED,
}

# An hour is enough for these: the alerts that might fire wait for a quarter of one.
SILENT_FOR_AN_HOUR = {
    "a few lines of another format come at once": {**WELL, **unread("0x20 20x180")},
    "at night nobody syncs": {
        **IDLE,
        **routed(answered="0+600x20 12000x180", preflights="0+60x20 1200+2x180"),
    },
    "a few requests to a pool go by user, and then none": {
        **WELL,
        f'nginx_routed_requests_total{{source="cache",pool="synapse_main",{MTAIL}}}': (
            "0+60x20 1200x180"
        ),
    },
    "a pool's workers restart": {**WELL, **failed("0x20 0+600x2 1200x180")},
    "a pool's workers fail one request in twenty": {**WELL, **failed("0+30x200")},
    "one client's token is one over which Synapse fails, and no other client is there": {
        **IDLE,
        **resolves(fingerprint=BOT),
        **lookups(unanswerable=BOT),
        **durations(BOT, below_half_a_second=BOT),
    },
    "one client's token is one over which Synapse fails, among a few": {
        **WELL,
        **resolves(cache="0+6x200", whoami="0+6x200", fingerprint=BOT),
        **lookups(owner="0+6x200", unanswerable=BOT),
    },
    "one client's token is malformed, among a few": {
        **IDLE,
        **resolves(cache="0+6x200", fingerprint="0+1x200"),
    },
    "one client's token is rejected, and no other client is there": {
        **IDLE,
        **resolves(rejected=BOT),
        **lookups(rejected=BOT),
    },
    "one client finds no room, among a few": {
        **WELL,
        **resolves(cache="0+60x200", fingerprint=BOT),
        **shed(BOT),
    },
    "one client's requests are such that whoami-router does not answer": {
        **WELL,
        **routed(answered="0+6x200", unavailable=BOT),
    },
    "one client's requests are such that no worker answers": {
        **WELL,
        **routed(answered="0+6x200"),
        **failed(BOT),
    },
    "nobody asks but health checks, of two processes": {**IDLE, **CHECKED_TWICE},
    "health checks are more than requests": {
        **IDLE,
        **CHECKED_TWICE,
        **resolves(cache="0+6x200", none=CHECKED),
    },
    "nobody asks but health checks, and nginx logs nothing": unlogged({**IDLE, **CHECKED_TWICE}),
}

# What happens, from when on, and which alerts fire: minutes after which they do not yet, and do.
FIRING = {
    "the only process is down": (
        {f"up{{{ROUTER}}}": "1x9 0x190"},
        {"WhoamiRouterAllDown": (11, 13)},
    ),
    "one of two processes is down": (
        {f"up{{{ROUTER}}}": "1x9 0x190", 'up{job="whoami-router",instance="2"}': ALWAYS_ONE},
        {"WhoamiRouterDown": (11, 13)},
    ),
    "Prometheus was told of no router": (
        {f"up{{{MTAIL}}}": ALWAYS_ONE},
        {"WhoamiRouterAbsent": (9, 11)},
    ),
    "mtail is down": (
        {**WELL, f"up{{{MTAIL}}}": "1x9 0x190"},
        {"WhoamiRouterNginxUnwatched": (19, 21)},
    ),
    "mtail is down, and had read nothing": (
        {**unlogged(WELL), f"up{{{MTAIL}}}": "1x13 0x186"},
        {"WhoamiRouterNginxUnwatched": (23, 25)},
    ),
    "nginx gets no answers, though the router is up": (
        {**WELL, **routed(answered="0+600x10 6000x190", unavailable="0x10 0+600x190")},
        {"WhoamiRouterUnanswered": (16, 19)},
    ),
    "nginx gets no answer to one request in fifty": (
        {**WELL, **routed(unavailable="0x10 0+12x190")},
        {"WhoamiRouterUnanswered": (17, 21)},
    ),
    "nginx logs in another format": (
        {**unlogged(WELL), **unread(per_second(60))},
        {"WhoamiRouterNginxUnread": (15, 17)},
    ),
    "a line a minute is in another format": (
        {**WELL, **unread("0x20 0+1x180")},
        {"WhoamiRouterNginxUnread": (35, 37)},
    ),
    "nginx has never logged": (
        unlogged(WELL),
        {"WhoamiRouterNginxUnlogged": (15, 17)},
    ),
    "nginx logs no more": (
        {**WELL, **dict.fromkeys(routed(), "0+600x20 12000x180")},
        {"WhoamiRouterNginxUnlogged": (39, 41)},
    ),
    "whoami-router is not asked about a pool any more": (
        {**WELL, **routed(answered="0+600x20 12000x180", preflights="0+60x200")},
        {"WhoamiRouterNotAsked": (39, 42)},
    ),
    "one of two nginxes does not ask about a pool any more": (
        {
            **WELL,
            'nginx_routed_requests_total{source="not_asked",pool="synapse_sync",'
            'job="whoami-router-mtail",instance="second"}': "0x20 0+600x180",
        },
        {"WhoamiRouterNotAsked": (35, 38)},
    ),
    "no worker of a pool can be reached": (
        {**WELL, **failed("0x20 0+600x180")},
        {"WhoamiRouterPoolUnreachable": (30, 33)},
    ),
    "whoami-router asks another Synapse": (
        {**WELL, **resolves(rejected=per_second(10)), **lookups(rejected=per_second(1))},
        {"WhoamiRouterNameless": (15, 17)},
    ),
    "nginx does not pass tokens on": (
        {**IDLE, **resolves(none=per_second(10)), **routed()},
        {"WhoamiRouterNameless": (15, 17)},
    ),
    "nginx does not pass tokens on, among health checks and a few requests": (
        {**IDLE, **CHECKED_TWICE, **resolves(cache="0+6x200", none="0+24x200")},
        {"WhoamiRouterNameless": (17, 21)},
    ),
    "Synapse is away, and what was known is used": (
        {**SYNAPSE_AWAY, **resolves(stale=per_second(10))},
        {"WhoamiRouterSynapseUnavailable": (1, 3), "WhoamiRouterFailsOpen": (15, 17)},
    ),
    "Synapse is away, and nothing was known": (
        {**SYNAPSE_AWAY, **resolves(fingerprint=per_second(10))},
        {"WhoamiRouterSynapseUnavailable": (1, 3), "WhoamiRouterFailsOpen": (15, 17)},
    ),
    "Synapse is away, and tokens name their users": (
        {**SYNAPSE_AWAY, **resolves(token=per_second(10))},
        {"WhoamiRouterSynapseUnavailable": (1, 3), "WhoamiRouterFailsOpen": (15, 17)},
    ),
    "one of two URLs is away": (
        {**WELL, **away("0x9 1x190")},
        {"WhoamiRouterSynapseUrlAway": (19, 21)},
    ),
    "Synapse fails over a fifth of the lookups": (
        {**WELL, **lookups(owner="0+48x200", unanswerable="0+12x200")},
        {"WhoamiRouterLookupsFail": (11, 14)},
    ),
    "a lookup in three takes longer than half a second": (
        {**WELL, **durations(per_second(1), below_half_a_second="0+40x200")},
        {"WhoamiRouterLookupsSlow": (15, 17)},
    ),
    "a fifth of the requests find no room": (
        {**WELL, **resolves(cache="0+480x200", token="0+120x200"), **shed("0+120x200")},
        {"WhoamiRouterFailsOpen": (15, 17), "WhoamiRouterShedsLookups": (15, 17)},
    ),
    "half of the requests are with tokens that are new": (
        HALF_NEW,
        {"WhoamiRouterHitRatioLow": (90, 93)},
    ),
    "half are new, and a few take the place of others": (
        {**HALF_NEW, **evicted("0+60x200")},
        {"WhoamiRouterHitRatioLow": (90, 93)},
    ),
    "half of the requests are with tokens that were forgotten": (
        {**HALF_NEW, **evicted("0+200x200")},
        {"WhoamiRouterMemoryTooSmall": (30, 32), "WhoamiRouterHitRatioLow": (90, 93)},
    ),
    "nearly all descriptors are in use": (
        {**WELL, **router("process_open_fds", "50x9 900x190")},
        {"WhoamiRouterDescriptorsShort": (14, 16)},
    ),
    "it starts again and again": (
        {**WELL, **started("0x5 100x5 200x5 300x5 400x180")},
        {"WhoamiRouterRestarts": (23, 25)},
    ),
    "a request meets a defect": (
        {**WELL, **resolves(cache=per_second(9), whoami=per_second(1), error="0x9 1x190")},
        {"WhoamiRouterDefect": (9, 11)},
    ),
    "a lookup meets a defect": (
        {**WELL, **lookups(owner=per_second(1), error="0x9 1x190")},
        {"WhoamiRouterDefect": (9, 11)},
    ),
}


def judged(directory, history, firing):
    """Return what promtool says to a history; ``firing`` are sets of alerts by minute."""
    file = directory / "tests.yml"
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in history.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": 'sum by (alertname) (ALERTS{alertstate="firing"} > bool 0)',
                        "eval_time": f"{minute}m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts
                        ],
                    }
                    for minute, alerts in firing.items()
                ],
            }
        ],
    }
    file.write_text(json.dumps(tests))  # which is YAML as well
    return promtool("test", "rules", str(file))


def rules():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def test_prometheus_takes_the_files():
    for what, file in (("rules", RULES), ("config", PROMETHEUS / "prometheus.yml")):
        checked = promtool("check", what, str(file))
        assert checked.returncode == 0, checked.stderr
        assert "SUCCESS" in checked.stdout


@pytest.mark.parametrize("history", SILENT.values(), ids=SILENT)
def test_no_alert_fires_while(history, tmp_path):
    checked = judged(tmp_path, history, dict.fromkeys(range(1, 180), ()))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("history", SILENT_FOR_AN_HOUR.values(), ids=SILENT_FOR_AN_HOUR)
def test_no_alert_fires_within_an_hour_while(history, tmp_path):
    checked = judged(tmp_path, history, dict.fromkeys(range(1, 60), ()))
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(("history", "firing"), FIRING.values(), ids=FIRING)
def test_alert_fires_when(history, firing, tmp_path):
    times = sorted(time for pair in firing.values() for time in pair)
    expected = {time: [name for name, (_, on) in firing.items() if time >= on] for time in times}
    checked = judged(tmp_path, history, expected)
    assert checked.returncode == 0, checked.stderr


def test_each_alert_fires_somewhere_here():
    named = {alert for _, firing in FIRING.values() for alert in firing}
    assert named == {rule["alert"] for rule in alerts()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert_says_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/operate.md#{rule['alert'].lower()}"
