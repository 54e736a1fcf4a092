"""What people and models write into prompts and answers when they mean harm, or when nobody stopped them."""

from __future__ import annotations

import dataclasses
from typing import Any

from report_builders import PROVENANCE, example, judge, metric, mixed, side, win_rate

from evalpipe.analysis.result import AlternativeDecision, Analysis, Check, Decision, DecisionChange, Example, Segment

CALL = "window.HIT=1;document.title='HIT'"

TEXTS = [
    f"<script>{CALL}</script>",
    f"</script><script>{CALL}</script>",
    f"</title></style></textarea></pre></details></main><script>{CALL}</script>",
    f"<img src=x onerror={CALL!r}>",
    f'<svg onload="{CALL}"><circle r=10/></svg>',
    f"<iframe srcdoc='<script>parent.{CALL}</script>'></iframe>",
    f"[click]( javascript:{CALL} ) and [again](data:text/html,<script>{CALL}</script>) <javascript:{CALL}>",
    "[ref]: javascript:alert(1)\n\n[ref] ![i](https://evil.example/pixel.png) <https://evil.example/a>",
    "<style>*{display:none!important}body{background:url(https://evil.example/css)}</style>",
    "<link rel=stylesheet href=https://evil.example/x.css><base href=https://evil.example/>",
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "<form action=https://evil.example><input autofocus onfocus=alert(1)><button>Send</button></form>",
    "{{7*7}} {% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %} ${7*7} #{7*7} <%= 7*7 %>",
    "\u202eThis line runs backwards\u202c \u2066isolated \u2067right to left\u2069 never closed \u202e\u202e\u202e",
    "שלום עולם, זה טקסט מימין לשמאל. مرحبا بالعالم (English inside) 123",
    "Z" + "".join(chr(0x300 + (i % 112)) for i in range(3000)) + "algo " + "H̸̡̪̯ͨ͊̽̅̾̎Ȩ̬̩̾͛ͪ̈́̀́͘ " * 60,
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b[0m \x9b31m \x08\x08\x08",
    "NUL \x00 in the \x00 middle, DEL \x7f, C1 \x85\x90",
    "lone \ud800 surrogates \udfff\udc00 and a non-character \uffff\ufffe",
    "W" * 5_000_000,
    "<b>" * 1_700_000,
    "many words " * 450_000,
    "`" * 3000 + "\n```\nnever closed <script>" + CALL + "</script>",
    "| a | b |\n|---|---|\n| <script>x</script> | " + "long" * 400 + " |",
    "- " * 400 + "deep\n" + "> " * 300 + "quote",
    "# heading\n## heading\n### heading\n" * 20,
    "&lt;script&gt; &#60;script&#62; &amp;lt; &nbsp;" * 20,
    "javascript:alert(1)\nvbscript:msgbox(1)\ndata:text/html;base64,PHNjcmlwdD4=",
    '" autofocus onfocus="' + CALL + '" x="',
    "' onmouseover='" + CALL + "' x='",
    "`${document.location='https://evil.example'}`",
    "\u200b\u200c\u200d\ufeff\U000e0041\U000e0042 invisible \u2028 separators \u2029",
    "<!-- <script>--><script>" + CALL + "//</script> ]]> <![CDATA[ <? ?>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--><img src=1 onerror=" + CALL + ">'>",
    "<details open ontoggle=" + CALL + "><summary>x</summary></details>",
    "<a href='https://evil.example' target=_blank style='position:fixed;inset:0'>cover</a>",
    "",
    "   \n\n\t\n   ",
]


def hostile_examples(count: int = 200) -> list[Example]:
    """`count` pairs whose every text is one of the above; the five-megabyte ones a few times, for memory's sake."""
    short = [text for text in TEXTS if len(text) < 100_000]
    found = []
    for n in range(count):
        pool = TEXTS if n < 12 else short
        a, b, c = (pool[(n * k + offset) % len(pool)] for k, offset in ((1, 0), (3, 7), (7, 19)))
        s = short[n % len(short)]
        found.append(
            example(
                n,
                request_id=f"{s}-{n}"[:4000],
                kind=["treatment_lost", "treatment_won", "judge_contradicted", "arm_failed", s][n % 5],
                unit_id=s,
                endpoint=s,
                started_at=s,
                prompt=[{"role": s[:200], "content": a}, {"role": "user", "content": a}],
                control=side(b, model=s, error=s, finish_reason=s[:100], tool_calls=c, outcome="http_error"),
                treatment=side(c, model=s, scores={s[:100] or "x": 1.0}),
                verdicts=[
                    {"judge": s, "shown_first": s, "winner": None, "status": s, "preference": None, "reasoning": b}
                ],
            )
        )
    return found


def hostile() -> Analysis:
    """A report whose every name and text means harm."""
    short = [text for text in TEXTS if 0 < len(text) < 4_000]
    s: Any = lambda n: short[n % len(short)]  # noqa: E731
    base = mixed()
    segments = [
        dataclasses.replace(segment, value=s(n), dimension=s(n + 3)) for n, segment in enumerate(base.segments * 3)
    ]
    return dataclasses.replace(
        base,
        experiment=s(0),
        metrics=[
            win_rate(label=s(0), note=s(5), method=s(6)),
            *[
                metric(
                    f"m{n}",
                    label=s(n),
                    note=s(n + 1),
                    method=s(n + 2),
                    unit=s(n + 3),
                    group=s(n + 4),
                    kinds_left_out=[s(n + 5)],
                    share_left_out=0.1,
                )
                for n in range(25)
            ],
        ],
        judges=[
            judge(name=s(n), model=s(n + 1), rubric=s(n + 2), note=s(n + 3), fingerprint=s(n + 4)) for n in range(5)
        ],
        checks=[
            Check(name="setup_fault", status="fail", detail=s(0), remedy=s(9)),
            *[
                Check(name=s(n), status=["pass", "warn", "fail"][n % 3], detail=s(n + 1), remedy=s(n + 2))
                for n in range(30)
            ],
        ],
        decision=Decision(
            recommendation="keep",
            headline=s(1),
            reasons=[s(n) for n in range(20)],
            what_would_change=[s(n) for n in range(20)],
            setup_faults=[s(n) for n in range(5)],
            blocking=[s(n) for n in range(3)],
            not_measured=[s(4)],
            changes=[
                DecisionChange(
                    event=["reached", "undone", "set", s(n)][n % 4],
                    at=s(n),
                    look=n,
                    recommendation=s(n),
                    rule=s(n),
                    why=s(n),
                )
                for n in range(20)
            ],
            without_exclusions=AlternativeDecision(recommendation=s(2), headline=s(3)),
        ),
        exclusions=[{"since": s(n), "until": s(n + 1), "why": s(n + 2), "declared_at": s(n + 3)} for n in range(20)],
        segments=[*segments, *_segments_of_unknown_metrics(s)],
        provenance=PROVENANCE
        | {
            "config": {s(n): s(n + 1) for n in range(20)},
            "reproduce": s(3),
            "arms": {"control": {"models": [s(2), s(4)], "provider": s(3)}, "treatment": {"models": s(5)}},
            "anything": {s(7): [s(8), s(9)]},
        },
        examples=hostile_examples(),
    )


def _segments_of_unknown_metrics(s: Any) -> list[Segment]:
    base = mixed().segments[0]
    return [dataclasses.replace(base, metric=s(n), value=s(n + 1)) for n in range(4)]
