"""Chains that a provider keeps: no copy changes what a user gets, and each stays on the arm that began it."""

from __future__ import annotations

import gzip
import http.client
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from collector_harness import RawUpstream, Received, Running, Script, chat_answer, eventually, plain
from provider_state import Account, Ask, text_of

Start = Callable[..., Running]
Upstream = Callable[[Script], RawUpstream]


class Client:
    """One connection a request, so that any worker may get it. `arms`: which arm served each request that named one;
    `patience_s`: how long a failed request waits before it is repeated."""

    def __init__(self, port: int, headers: dict[str, str] | None = None, *, patience_s: float = 0.0) -> None:
        self.port, self.headers, self.patience_s = port, headers or {}, patience_s
        self.arms: list[str] = []
        self.answer_headers: list[dict[str, str]] = []

    def __call__(
        self, path: str, body: dict[str, Any] | None, *, method: str = "", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        """`method`: GET without a body, else POST."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            None if body is None else json.dumps(body),
            {"content-type": "application/json", **self.headers, **named},
        )
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        self.answer_headers.append(found)
        if "x-evalpipe-arm" in found:
            self.arms.append(found["x-evalpipe-arm"])
        if found.get("content-type", "").startswith("text/event-stream"):
            events = [json.loads(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
            return answer.status, events[-1].get("response", events[-1])
        return answer.status, json.loads(raw)


def twice(ask: Ask, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """As an SDK: what is answered 529 is asked again, beside copies a moment later (by when the first has been copied)."""
    status, answer = ask(path, body)
    if status != 529:
        return status, answer
    time.sleep(getattr(ask, "patience_s", 0.0))
    return ask(path, body)


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def messages(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "claude-haiku-4-5", "max_tokens": 5, "messages": [{"role": "user", "content": text}], **more}


def responses(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "input": text, **more}


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}


def previous_response(ask: Ask, n: str) -> Iterator[Any]:
    status, answer = ask(RESPONSES, responses(f"one {n}"))
    yield status, text_of(answer)
    for turn in ("two", f"three FAULT={n}a", "four"):
        status, answer = twice(ask, RESPONSES, responses(turn, previous_response_id=answer["id"]))
        yield status, text_of(answer)


def conversation_object(ask: Ask, n: str) -> Iterator[Any]:
    _, made = ask("/v1/conversations", {})
    for turn in ("one", f"two FAULT={n}b", "three"):
        status, answer = twice(ask, RESPONSES, responses(turn, conversation=made["id"]))
        yield status, text_of(answer)


def item_reference(ask: Ask, n: str) -> Iterator[Any]:
    _, first = ask(RESPONSES, responses(f"one {n}"))
    items = [
        {"role": "user", "content": f"one {n}"},
        {"type": "item_reference", "id": first["output"][-1]["id"]},
        {"role": "user", "content": f"two FAULT={n}c"},
    ]
    status, answer = twice(ask, RESPONSES, responses("", input=items))
    yield status, text_of(answer)


def code_interpreter(ask: Ask, n: str) -> Iterator[Any]:
    tools = [{"type": "code_interpreter", "container": {"type": "auto"}}]
    _, first = ask(RESPONSES, responses(f"one {n}", tools=tools, store=False))
    tools = [{"type": "code_interpreter", "container": first["output"][0]["container_id"]}]
    for turn in (f"two FAULT={n}d", "three"):
        status, answer = twice(ask, RESPONSES, responses(turn, tools=tools, store=False))
        yield status, text_of(answer)


def thread(ask: Ask, n: str) -> Iterator[Any]:
    status, answer = ask(MESSAGES, messages(f"one {n}", thread={"type": "create"}))
    yield status, text_of(answer)
    for turn in (f"two FAULT={n}e", "three", f"four FAULT={n}f"):
        go_on = {"type": "continue", "previous_message_id": answer["id"]}
        status, answer = twice(ask, MESSAGES, messages(turn, thread=go_on))
        yield status, text_of(answer)


def code_execution(ask: Ask, n: str) -> Iterator[Any]:
    tools = [{"type": "code_execution_20250825", "name": "code_execution"}]
    _, first = ask(MESSAGES, messages(f"one {n}", tools=tools))
    for turn in (f"two FAULT={n}g", "three"):
        status, answer = twice(ask, MESSAGES, messages(turn, tools=tools, container=first["container"]["id"]))
        yield status, text_of(answer)


def credit(ask: Ask, n: str) -> Iterator[Any]:
    refused = messages(f"REFUSE {n}")
    _, first = ask(MESSAGES, refused, anthropic_beta="server-side-fallback-2026-01-01")
    token = first["stop_details"]["fallback_credit_token"]
    status, answer = twice(ask, MESSAGES, messages(f"again FAULT={n}h", fallback_credit_token=token))
    yield status, text_of(answer)


def user_budget(ask: Ask, n: str) -> Iterator[Any]:
    for turn in ("one", "two", "three"):
        for path, body in (
            (CHAT, chat(turn, user=f"u{n}")),
            (CHAT, chat(turn, safety_identifier=f"s{n}")),
            (MESSAGES, messages(turn, metadata={"user_id": f"m{n}"})),
        ):
            status, answer = ask(path, body)
            yield status, text_of(answer)


def sessions_of_a_server(ask: Ask, n: str) -> Iterator[Any]:
    for turn in ("one", f"two FAULT={n}i", "three"):
        for more in ({"session_params": {"id": f"a{n}"}}, {"session_id": f"b{n}"}):
            status, answer = twice(ask, CHAT, chat(turn, **more))
            yield status, text_of(answer)


def request_ids(ask: Ask, n: str) -> Iterator[Any]:
    for turn in ("one", f"two FAULT={n}j", f"three FAULT={n}k"):
        status, answer = twice(ask, CHAT, chat(turn, request_id=f"{n} {turn}"))
        yield status, text_of(answer)


def audio(ask: Ask, n: str) -> Iterator[Any]:
    _, first = ask(CHAT, chat(f"one {n}", audio={"voice": "a", "format": "wav"}, modalities=["text", "audio"]))
    told = [{"role": "user", "content": f"one {n}"}]
    told.append({"role": "assistant", "audio": {"id": first["choices"][0]["message"]["audio"]["id"]}})
    status, answer = twice(ask, CHAT, {**chat(""), "messages": [*told, {"role": "user", "content": f"two FAULT={n}l"}]})
    yield status, text_of(answer)


def background(ask: Ask, n: str) -> Iterator[Any]:
    """Begun in the background and asked for until it is done; another one cancelled."""
    for turn in ("one", f"two FAULT={n}m"):
        _, begun = twice(ask, RESPONSES, responses(f"{turn} {n}", background=True))
        for path, method in (("", ""), ("", ""), ("/cancel", "POST")):
            status, answer = ask(f"{RESPONSES}/{begun['id']}{path}", None, method=method)
            yield status, answer["status"]


def kept_answers(ask: Ask, n: str) -> Iterator[Any]:
    """What is stored is asked for by its id, and taken out by it."""
    for path, body in ((RESPONSES, responses(f"a {n}")), (CHAT, chat(f"b {n}", store=True, metadata={"of": n}))):
        _, first = ask(path, body)
        for method in ("GET", "DELETE"):
            status, answer = ask(f"{path}/{first['id']}", None, method=method)
            yield status, {**answer, "id": answer["id"] == first["id"]}


def other_routes(ask: Ask, n: str) -> Iterator[Any]:
    """Assistants, threads and their runs, batches, files, vector stores, by no collected route."""
    for path in ("assistants", f"threads/{n}/messages", f"threads/{n}/runs", "batches", "files", f"vector_stores/{n}/files",
                 "messages/batches", "uploads", "evals", "fine_tuning/jobs"):  # fmt: skip
        for turn in range(2):
            status, answer = ask(f"/v1/{path}?of={n}", {"input": f"{turn} {n}"})
            yield status, (answer["n"], answer["given"])


def tools_with_effects(ask: Ask, n: str) -> Iterator[Any]:
    tools = [{"type": "mcp", "server_label": "m", "server_url": f"http://tools/{n}", "require_approval": "never"}]
    for turn in ("one", f"two FAULT={n}n", "three"):
        status, answer = twice(ask, RESPONSES, responses(turn, tools=tools, store=False))
        yield status, text_of(answer)


def mcp_servers(ask: Ask, n: str) -> Iterator[Any]:
    servers = [{"type": "url", "name": "m", "url": f"http://tools/{n}"}]
    for turn in ("one", f"two FAULT={n}o", "three"):
        status, answer = twice(ask, MESSAGES, messages(turn, mcp_servers=servers))
        yield status, text_of(answer)


def keys_nobody_knows(ask: Ask, n: str) -> Iterator[Any]:
    """A key of the future whose value is good for one request."""
    for number, (path, make) in enumerate(((CHAT, chat), (RESPONSES, responses), (MESSAGES, messages))):
        for turn in ("one", f"two FAULT={n}p{number}", "three"):
            for key in ("x_resume", "x_ticket_id"):
                status, answer = twice(ask, path, make(turn, **{key: f"{n} {number} {turn} {key}"}))
                yield status, text_of(answer)


KEPT = {
    "openai": (previous_response, conversation_object, item_reference, code_interpreter, sessions_of_a_server, request_ids,
               audio, background, kept_answers),
    "anthropic": (thread, code_execution, credit),
}  # fmt: skip
NOT_SPLIT = {
    "openai": (tools_with_effects, other_routes, keys_nobody_knows, user_budget),
    "anthropic": (mcp_servers, other_routes, keys_nobody_knows, lambda ask, n: list(user_budget(ask, n))[2::3]),
}
"""flows that only copies could disturb"""


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_no_copy_changes_what_a_user_gets(provider: str, upstream: Upstream, collector: Start) -> None:
    """Both arms on one account. A user's attempt fails now and then, so that its copy comes before its repetition."""
    flows = (*KEPT[provider], *NOT_SPLIT[provider])
    direct = Client(upstream(Account("d")).port)
    account = Account("p")
    server = upstream(account)
    running = collector(server.url, server.url, provider=provider, treatment_provider=provider)
    proxied = Client(running.port, patience_s=0.15)
    for number, flow in enumerate(flows):
        for repetition in range(2):
            name = f"x{number}x{repetition}x"
            expected = list(flow(direct, name))
            assert all(status == 200 for status, _ in expected), expected
            assert list(flow(proxied, name)) == expected, flow.__name__
    eventually(lambda: len(running.fates()) == len(running.requests()))
    sent = sum(fate.status == "sampled" for fate in running.fates().values())
    assert sent, "what is kept by nobody was copied"
    reasons = {fate.reason for fate in running.fates().values() if fate.status == "not_shadowable"}
    named = {"openai": "unknown_parameter:session_params", "anthropic": "needs_server_state:thread"}[provider]
    assert named in reasons


def test_a_copy_is_stored_nowhere(upstream: Upstream, collector: Start) -> None:
    control, treatment = Account("c"), Account("t")
    running = collector(upstream(control).url, upstream(treatment).url)
    ask = Client(running.port)
    ask(RESPONSES, responses("a"))
    ask(RESPONSES, responses("b", store=True))
    ask(CHAT, chat("c", store=True, metadata={"a": "b"}))
    eventually(lambda: len(running.responses("shadow")) == 3)
    assert len(control.stored) == 3
    assert (treatment.stored, treatment.responses) == ([], {})


def run_chains(running: Running, *, n: int, of: Callable[[Ask, str], Iterator[Any]], name: str = "") -> Counter[str]:
    """Chains of a talk with no user named; asserts that none breaks or changes its arm."""
    served: Counter[str] = Counter()
    for number in range(n):
        client = Client(running.port)
        told = list(of(client, f"{name}{number}"))
        assert all(status == 200 for status, _ in told), (number, told, client.arms)
        assert len(set(client.arms)) == 1, (number, client.arms)
        served[client.arms[0]] += 1
    return served


def streamed_chain(ask: Ask, n: str) -> Iterator[Any]:
    answer: dict[str, Any] = {}
    for turn in range(3):
        more = {"previous_response_id": answer["id"]} if answer else {}
        status, answer = ask(RESPONSES, responses(f"{turn} {n}", stream=True, **more))
        yield status, text_of(answer)


def test_a_chain_stays_on_the_arm_that_began_it(upstream: Upstream, collector: Start) -> None:
    """Two accounts, half of the units each, nobody names a user: each turn's text alone would draw the arm anew."""
    arms = (upstream(Account("c")).url, upstream(Account("t")).url)
    options = {"mode": "ab", "experiment": "treatment_percent = 50\n", "collector": "workers = 2"}
    running = collector(*arms, **options)
    flows = (previous_response, item_reference, code_interpreter, streamed_chain, audio)
    served = sum((run_chains(running, n=12, of=flow, name=flow.__name__) for flow in flows), Counter())
    assert min(served["control"], served["treatment"]) > 10, served
    # A conversation object is made beside the collected requests, so on control's account.
    assert set(run_chains(running, n=5, of=conversation_object)) == {"control"}
    units = {r.unit_id for r in running.requests().values() if not r.forced}
    assert len(units) == 60, "each chain is one unit, whatever its turns say"
    # What was begun before a restart goes on after it.
    begun = []
    for number in range(12):
        client = Client(running.port)
        status, answer = client(RESPONSES, responses(f"before {number}"))
        begun.append((client, answer["id"]))
    assert running.stop() == 0
    again = collector(*arms, root=running.root, **options)
    for client, name in begun:
        client.port = again.port
        status, answer = client(RESPONSES, responses("after", previous_response_id=name))
        assert (status, text_of(answer)) == (200, "turn 2 of after")
        assert len(set(client.arms)) == 1
    assert {client.arms[0] for client, _ in begun} == {"control", "treatment"}


def test_threads_stay_on_their_arm(upstream: Upstream, collector: Start) -> None:
    arms = (upstream(Account("c")).url, upstream(Account("t")).url)
    running = collector(
        *arms, provider="anthropic", treatment_provider="anthropic", mode="ab", experiment="treatment_percent = 50\n"
    )
    served = sum((run_chains(running, n=12, of=flow, name=flow.__name__) for flow in KEPT["anthropic"]), Counter())
    assert min(served["control"], served["treatment"]) > 5, served


def test_what_is_asked_for_by_its_id_is_asked_of_the_arm_that_made_it(upstream: Upstream, collector: Start) -> None:
    """Polled, read, cancelled and deleted by an id in the path: control's account has never seen the treatment's."""
    control, treatment = Account("c"), Account("t")
    running = collector(
        upstream(control).url, upstream(treatment).url, mode="ab", experiment="treatment_percent = 50\n"
    )
    served: Counter[str] = Counter()
    for number in range(12):
        for flow in (background, kept_answers):
            client = Client(running.port)
            told = list(flow(client, f"{flow.__name__}{number}"))
            assert all(status == 200 for status, _ in told), (number, told, client.arms)
            served.update(client.arms)
    assert min(served["control"], served["treatment"]) > 5, served
    assert not [answer for answer in treatment.kept_answers.values() if answer.get("status") == "queued"]
    ask = Client(running.port)
    assert ask(f"{RESPONSES}/resp_of_nobody", None)[0] == 404
    assert ask("/v1/files", {"purpose": "batch"})[1]["n"] == 1
    assert (control.objects["/v1/files"], treatment.objects["/v1/files"]) == (1, 0)


def test_what_was_begun_elsewhere_is_controls_and_in_no_statistic(upstream: Upstream, collector: Start) -> None:
    control = Account("c")
    control.responses["resp_old"], control.items = 1, {"msg_old"}
    running = collector(
        upstream(control).url, upstream(Account("t")).url, mode="ab", experiment="treatment_percent = 100\n"
    )
    ask = Client(running.port)
    status, answer = ask(RESPONSES, responses("go on", previous_response_id="resp_old"))
    assert (status, text_of(answer)) == (200, "turn 2 of go on")
    file = [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]
    ask(RESPONSES, responses("", input=file))
    assert ask(RESPONSES, responses("a new one"))[0] == 200
    assert ask.arms == ["control", "control", "treatment"]
    eventually(lambda: len(running.responses()) == 3)
    found = [(r.arm, r.forced) for r in running.requests().values()]
    assert found == [("control", True), ("control", True), ("treatment", False)]
    assert [fate.reason for fate in running.fates().values()] == ["needs_server_state", "needs_server_state:file_id"]


def anthropic_answer(request: Received) -> list[bytes]:
    answer = {"id": "msg_x", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn"}
    answer |= {"content": [{"type": "text", "text": "hi"}], "usage": {"input_tokens": 1, "output_tokens": 1}}
    return [plain(json.dumps(answer).encode())]


def test_a_response_that_may_be_continued_is_not_translated(upstream: Upstream, collector: Start) -> None:
    """Every second turn here would be lost: an id of evalpipe's own cannot be continued by either arm."""
    running = collector(
        upstream(Account("c")).url,
        upstream(anthropic_answer).url,
        treatment_provider="anthropic",
        mode="ab",
        experiment="treatment_percent = 100\n",
    )
    assert run_chains(running, n=5, of=previous_response) == {"control": 5}
    assert run_chains(running, n=5, of=streamed_chain) == {"control": 5}
    ask = Client(running.port)
    status, answer = ask(RESPONSES, responses("hi", store=False))
    assert (status, text_of(answer), ask.arms) == (200, "hi", ["treatment"])
    assert answer["id"].startswith("resp_") and answer["store"] is False
    assert answer["output"][0]["id"].startswith("msg_") and "resp_" not in answer["output"][0]["id"]
    name = ask.answer_headers[-1]["x-evalpipe-request-id"]
    assert answer["id"] == f"resp_{name}" and ask.answer_headers[-1]["x-request-id"] == f"req_{name}"
    eventually(lambda: len(running.responses()) == 41)
    assert Counter(r.forced for r in running.requests().values()) == {True: 40, False: 1}
    reasons = Counter(fate.reason for fate in running.fates().values())
    assert reasons == {"may_be_continued": 10, "needs_server_state": 30}


def test_where_the_application_never_goes_on_its_responses_are_split(upstream: Upstream, collector: Start) -> None:
    running = collector(
        upstream(Account("c")).url,
        upstream(anthropic_answer).url,
        treatment_provider="anthropic",
        mode="ab",
        experiment="treatment_percent = 100\n",
        collector="responses_may_continue = false",
    )
    ask = Client(running.port)
    assert text_of(ask(RESPONSES, responses("hi"))[1]) == "hi"
    assert ask.arms == ["treatment"]


@pytest.mark.parametrize("percent", [100, 0.01])
def test_a_conversation_with_a_request_that_cannot_be_translated_stays_with_control(
    percent: float, upstream: Upstream, collector: Start
) -> None:
    """Whatever the draw: else the arms were compared on different requests."""
    running = collector(
        upstream(lambda r: [plain(chat_answer("control"))]).url,
        upstream(anthropic_answer).url,
        treatment_provider="anthropic",
        mode="ab",
        experiment=f"treatment_percent = {percent}\n",
        collector="workers = 2",
    )
    drawn = "treatment" if percent == 100 else "control"
    ask = Client(running.port)
    talk = [{"role": "user", "content": "first"}]
    ask(CHAT, chat("", messages=talk))
    talk += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "second"}]
    ask(CHAT, chat("", messages=talk, response_format={"type": "json_object"}))
    talk += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "third"}]
    ask(CHAT, chat("", messages=talk))
    ask(CHAT, chat("another talk"))
    assert ask.arms == [drawn, "control", "control", drawn]
    eventually(lambda: len(running.responses()) == 4)
    assert [r.forced for r in sorted(running.requests().values(), key=lambda r: r.received_at)] == [
        False,
        True,
        True,
        False,
    ]
    fates = [running.fates()[name].reason for name in sorted(running.fates())]
    assert fates == ["json_mode_without_schema", "conversation_on_control"]


def test_ids_are_found_in_packed_answers(upstream: Upstream, collector: Start) -> None:
    def packed(account: Account) -> Script:
        def script(request: Received) -> Any:
            (whole,) = account(request)
            assert isinstance(whole, bytes)
            body = gzip.compress(whole.partition(b"\r\n\r\n")[2])
            return [plain(body, headers=b"Content-Type: application/json\r\nContent-Encoding: gzip\r\n")]

        return script

    running = collector(
        upstream(packed(Account("c"))).url, upstream(packed(Account("t"))).url, mode="ab",
        experiment="treatment_percent = 50\n",
    )  # fmt: skip

    class Unpacking(Client):
        def __call__(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            self.arms.append(str(answer.getheader("x-evalpipe-arm")))
            return answer.status, json.loads(gzip.decompress(answer.read()))

    for number in range(10):
        client = Unpacking(running.port)
        _, first = client(RESPONSES, responses(f"one {number}"))
        assert client(RESPONSES, responses("two", previous_response_id=first["id"]))[0] == 200
        assert len(set(client.arms)) == 1
