"""`evalpipe doctor --live` against servers on loopback: what is asked, what it costs, what a failure says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from collector_harness import RawUpstream, Received, chat_answer, plain
from command_line import run_here

from evalpipe.workspace.doctor import Diagnosis
from evalpipe.workspace.doctor_live import diagnose_live
from evalpipe.workspace.paths import open_workspace

pytestmark = pytest.mark.uncompiled
Upstream = Callable[..., RawUpstream]

MESSAGES_ANSWER = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": "OK"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {"input_tokens": 14, "output_tokens": 1},
    }
).encode()


def answering(request: Received) -> list[bytes]:
    return [plain(MESSAGES_ANSWER if b"/messages " in request.line else chat_answer("OK", model="gpt-4o"))]


def refusing(status: str, **error: object) -> Callable[[Received], list[bytes]]:
    return lambda request: [plain(json.dumps({"error": error}).encode(), status=status)]


def workspace(
    root: Path,
    *,
    control: str,
    treatment: str = "",
    judge: str,
    judge_provider: str = "anthropic",
    judge_params: str = "",
    control_more: str = "",
    treatment_more: str = "",
) -> Path:
    (root / "judges").mkdir(parents=True)
    arm = ""
    if treatment:
        arm = f'[arms.treatment]\nbase_url = "{treatment}"\napi_key_env = "T_KEY"\n{treatment_more}'
    (root / "evalpipe.toml").write_text(
        f"""
[experiment]
name = "test"
[arms.control]
provider = "openai"
base_url = "{control}"
model = "gpt-4o"
{control_more}
{arm}
[judge]
name = "mine"
base_url = "{judge}"
api_key_env = "J_KEY"
[prices."gpt-4o"]
input = 2.0
output = 10.0
[prices."claude-haiku-4-5"]
input = 1.0
output = 5.0
"""
    )
    (root / "judges" / "mine.toml").write_text(
        f"""
mode = "pairwise"
provider = "{judge_provider}"
model = "claude-haiku-4-5"
template = "pairwise.j2"
{judge_params}
[dimensions]
accuracy = "is it right"
"""
    )
    return root


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "EVALPIPE_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("C_KEY", "T_KEY", "J_KEY"):
        monkeypatch.setenv(name, f"sk-secret-{name.lower()}")


def live(root: Path) -> dict[str, Diagnosis]:
    found: Iterable[Diagnosis] = diagnose_live(open_workspace(root / "evalpipe.toml", root / "data"))
    return {one.name: one for one in found}


def test_each_arm_and_judge_is_asked_once_on_its_path(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    server = upstream(answering)
    root = workspace(
        tmp_path / "w",
        control=f"{server.url}/v1beta/openai",
        control_more='api_key_env = "C_KEY"',
        treatment=f"{server.url}/anthropic",
        treatment_more='provider = "anthropic"\nmodel = "claude-haiku-4-5"\nparams = { max_tokens = 512 }',
        judge=f"{server.url}/judge/v1",
    )
    done = run_here("doctor", "--live", "--json", cwd=root, env={"EVALPIPE_DATA": str(root / "data")})
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert [request.line.split(b" ")[1] for request in server.received] == [
        b"/v1beta/openai/chat/completions",
        b"/anthropic/v1/messages",
        b"/judge/v1/messages",
    ]
    assert [json.loads(request.body)["max_tokens"] for request in server.received] == [1, 1, 1]
    assert server.received[0].header("authorization") == b"Bearer sk-secret-c_key"
    assert server.received[1].header("x-api-key") == b"sk-secret-t_key"
    assert b"sk-secret-j_key" in server.received[2].head  # in the header the installed SDK uses
    # 10 tokens in at 2 USD and 5 out at 10 USD per million; 14 in at 1 USD and 1 out at 5 USD.
    assert found["live control"]["cost_usd"] == pytest.approx(70e-6)
    assert found["live treatment"]["cost_usd"] == pytest.approx(19e-6)
    assert found["live judge mine"]["cost_usd"] == pytest.approx(19e-6)
    assert "$0.000070" in found["live control"]["detail"]
    assert f"{server.url}/v1beta/openai/chat/completions" in found["live control"]["detail"]
    assert {found[name]["status"] for name in found if name.startswith("live ")} == {"pass"}


def test_a_failing_arm_is_named_with_the_providers_words(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    wrong_path = upstream(refusing("404 Not Found", message="no such path", type="not_found", code=None))
    wrong_key = upstream(
        refusing(
            "401 Unauthorized", message="Incorrect API key provided: sk-secret-t_key.", type="invalid_request_error"
        )
    )
    judge = upstream(
        refusing("401 Unauthorized", message="invalid x-api-key: sk-secret-j_key", type="authentication_error")
    )
    root = workspace(
        tmp_path / "w",
        control=wrong_path.url,
        control_more='api_key_env = "C_KEY"',
        treatment=wrong_key.url,
        treatment_more='provider = "openai"\nmodel = "gpt-4o"',
        judge=judge.url,
    )
    done = run_here("doctor", "--live", cwd=root, env={"EVALPIPE_DATA": str(root / "data")})
    assert done.returncode == 1
    lines = {line[6:].partition(":")[0]: line for line in done.stdout.splitlines()}
    assert "HTTP 404: no such path" in lines["live control"]
    assert "arms.control.base_url" in lines["live control"]
    assert "HTTP 401: Incorrect API key provided: [key]" in lines["live treatment"]
    assert "check the key in T_KEY" in lines["live treatment"]
    assert "HTTP 401" in lines["live judge mine"]
    assert "check the key in J_KEY" in lines["live judge mine"]
    assert all(lines[name].startswith("FAIL") for name in lines if name.startswith("live "))
    assert "sk-secret" not in done.stdout + done.stderr


def test_nothing_is_sent_without_live(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    server = upstream(answering)
    root = workspace(tmp_path / "w", control=server.url, judge=server.url)
    done = run_here("doctor", "--json", cwd=root, env={"EVALPIPE_DATA": str(root / "data")})
    assert {key for one in json.loads(done.stdout) for key in one} == {"name", "status", "detail", "remedy"}
    assert server.received == []


def test_a_limit_that_is_too_small_is_raised_step_by_step(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    """OpenAI: "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16"."""

    def script(request: Received) -> list[bytes]:
        if json.loads(request.body)["max_tokens"] < 16:
            return refusing(
                "400 Bad Request",
                message="Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
            )(request)
        return answering(request)

    server = upstream(script)
    root = workspace(tmp_path / "w", control=server.url, judge=f"{server.url}/v1")
    found = live(root)
    assert {name: one.status for name, one in found.items()} == {"live control": "pass", "live judge mine": "pass"}
    assert [json.loads(request.body)["max_tokens"] for request in server.received] == [1, 16, 1, 16]


def test_the_other_name_of_the_limit_is_tried(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    """OpenAI of a model evalpipe does not know: "Unsupported parameter: 'max_tokens' … Use 'max_completion_tokens' instead"."""

    def script(request: Received) -> list[bytes]:
        body = json.loads(request.body)
        if "max_tokens" in body and b"chat" in request.line:
            message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return refusing("400 Bad Request", message=message, code="unsupported_parameter")(request)
        return answering(request)

    server = upstream(script)
    root = workspace(tmp_path / "w", control=server.url, judge=server.url)
    assert live(root)["live control"].status == "pass"
    assert json.loads(server.received[1].body)["max_completion_tokens"] == 1


def test_a_model_that_stops_in_its_thoughts_has_answered(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    """OpenAI's 400 of a reasoning model at a small limit; nothing is asked again, as more thinking costs more."""
    message = (
        "Could not finish the message because max_tokens or model output limit was reached. "
        "Please try again with higher max_tokens."
    )
    server = upstream(refusing("400 Bad Request", message=message, type="invalid_request_error"))
    root = workspace(
        tmp_path / "w",
        control=server.url,
        judge=f"{server.url}/v1",
        judge_provider="openai",
        judge_params='reply = "text"',
    )
    found = live(root)
    assert {name: one.status for name, one in found.items()} == {"live control": "pass", "live judge mine": "pass"}
    assert "stopped at the token limit" in found["live control"].detail
    assert "cost not known" in found["live control"].detail
    assert len(server.received) == 2


def test_control_with_the_clients_key(
    upstream: Upstream, tmp_path: Path, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: Received) -> list[bytes]:
        if request.header("authorization") != b"Bearer sk-of-a-client" and b"chat" in request.line:
            return refusing("401 Unauthorized", message="You didn't provide an API key.")(request)
        return answering(request)

    server = upstream(script)
    root = workspace(tmp_path / "w", control=server.url, judge=server.url)
    without = live(root)["live control"]
    assert without.status == "warn"
    assert "OPENAI_API_KEY" in (without.remedy or "")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-client")
    assert live(root)["live control"].status == "pass"


def test_what_cannot_be_reached_or_read_fails(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    page = upstream(lambda request: [plain(b"<html>hello</html>", headers=b"Content-Type: text/html\r\n")])
    root = workspace(
        tmp_path / "w",
        control=page.url,
        treatment="http://127.0.0.1:9/v1",
        treatment_more='provider = "openai"\nmodel = "gpt-4o"',
        judge="http://127.0.0.1:9",
    )
    found = live(root)
    assert {name: one.status for name, one in found.items()} == {
        "live control": "fail",
        "live treatment": "fail",
        "live judge mine": "fail",
    }
    assert "refused" in found["live treatment"].detail.lower()
    assert "network" in (found["live treatment"].remedy or "")


def test_a_judge_is_asked_where_an_arm_would_be(upstream: Upstream, tmp_path: Path, keys: None) -> None:
    """The same address means the same path for arms and judges, whatever their SDKs make of it."""
    server = upstream(answering)
    expected = {
        ("openai", ""): "/v1/chat/completions",
        ("openai", "/v1beta/openai"): "/v1beta/openai/chat/completions",
        ("openai", "/api/v3/"): "/api/v3/chat/completions",
        (
            "openai",
            "/openai/deployments/mini?api-version=2024-10-21",
        ): "/openai/deployments/mini/chat/completions?api-version=2024-10-21",
        ("openai", "/models?api-version=2024-05-01-preview"): "/models/chat/completions?api-version=2024-05-01-preview",
        ("openai", "/v2/chat/completions"): "/v2/chat/completions",
        ("anthropic", ""): "/v1/messages",
        ("anthropic", "/v1"): "/v1/messages",
        ("anthropic", "/anthropic"): "/anthropic/v1/messages",
    }
    for number, ((provider, base), path) in enumerate(expected.items()):
        root = workspace(tmp_path / f"w{number}", control=server.url, judge=server.url + base, judge_provider=provider)
        server.received.clear()
        assert live(root)["live judge mine"].status == "pass", base
        assert server.received[-1].line.split(b" ")[1].decode() == path
        if "deployments" in base:
            assert server.received[-1].header("api-key") == b"sk-secret-j_key"


def test_a_key_in_an_address_is_refused(tmp_path: Path) -> None:
    root = workspace(tmp_path / "w", control="https://host/v1?api_key=sk-1", judge="https://host")
    done = run_here("doctor", cwd=root)
    assert done.returncode == 2
    assert "api_key_env" in done.stderr
