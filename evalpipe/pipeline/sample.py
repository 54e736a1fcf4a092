"""The shipped sample: what two small real models answered through the collector, and what is made of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from evalpipe.core.spool import RequestRecord, ResponseRecord, read_record
from evalpipe.core.traffic import ANSWERED
from evalpipe.errors import DataError
from evalpipe.pipeline.demo_client import SampleRequest, load_sample_requests
from evalpipe.pipeline.workspace import shipped
from evalpipe.providers.registry import read_answer

REQUESTS = "requests.jsonl"
LOG = "log.jsonl.gz"


def sample_folder() -> Path:
    folder = shipped("data/sample")
    if not (folder / LOG).is_file():
        raise DataError(f"no sample log at {folder / LOG}: the installation is incomplete")
    return folder


def sample_requests() -> list[SampleRequest]:
    return load_sample_requests(sample_folder() / REQUESTS)


def write_corpus(log: Path, path: Path) -> int:
    """Write the recorded answers of a collector's log as a corpus of the simulated providers; how many.

    Each line is a conversation, the model that answered, its text, tokens, latency and time to first token. Copies and
    served answers alike; answers that failed are left out: the simulator makes its own faults.
    """
    conversations: dict[str, list[object]] = {}
    answers: list[ResponseRecord] = []
    for line in gzip.decompress(log.read_bytes()).splitlines():
        record = read_record(line)
        if isinstance(record, RequestRecord):
            conversations[record.request_id] = json.loads(record.body.data)["messages"]
        elif isinstance(record, ResponseRecord):
            answers.append(record)
    n_written = 0
    with path.open("w", encoding="utf-8") as out:
        for record in answers:
            answer = read_answer(record.endpoint, record.status, record.headers, record.body.data)
            if answer.outcome not in ANSWERED:
                continue
            entry = {
                "model": answer.model,
                "messages": conversations[record.request_id],
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "input_tokens": answer.usage.input_tokens,
                "output_tokens": answer.usage.output_tokens,
                "latency_ms": record.latency_ms,
                "ttft_ms": _first_token_ms(record, answer.content_offset),
            }
            out.write(json.dumps(entry, ensure_ascii=False) + "\n")
            n_written += 1
    return n_written


def _first_token_ms(record: ResponseRecord, content_offset: int | None) -> float | None:
    """When the body first reached `content_offset` bytes; None where the answer was not streamed."""
    if content_offset is None:
        return None
    return next((ms for n_bytes, ms in record.marks if n_bytes >= content_offset), None)
