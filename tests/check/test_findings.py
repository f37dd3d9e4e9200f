from whoami_router.check.findings import all_well, as_json, as_text, note, ok, quoted, wrong

FINDINGS = [
    ok("synapse", "it answers"),
    wrong("nginx", "it is deleted", "internal;", "a.conf:3"),
    note("token", "it is old"),
]


def test_text_has_a_line_for_each_and_one_below_for_the_remedy():
    assert as_text(FINDINGS).splitlines() == [
        "ok     synapse  it answers",
        "wrong  nginx    a.conf:3: it is deleted",
        "                remedy: internal;",
        "note   token    it is old",
    ]


def test_json_has_every_field_of_each():
    assert as_json(FINDINGS) == {
        "ok": False,
        "findings": [
            {
                "part": "synapse",
                "status": "ok",
                "what": "it answers",
                "remedy": None,
                "place": None,
            },
            {
                "part": "nginx",
                "status": "wrong",
                "what": "it is deleted",
                "remedy": "internal;",
                "place": "a.conf:3",
            },
            {
                "part": "token",
                "status": "note",
                "what": "it is old",
                "remedy": None,
                "place": None,
            },
        ],
    }


def test_notes_are_nothing_wrong():
    assert all_well([FINDINGS[0], FINDINGS[2]])
    assert not all_well(FINDINGS)


def test_what_strangers_sent_is_one_short_line():
    assert quoted("a\x1b[31m\r\nb  c") == "a [31m b c"
    assert len(quoted("x" * 5000)) < 300
