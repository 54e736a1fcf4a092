"""Identity: the assignment's published vectors (derived with coreutils' sha256sum), canonical JSON, keyed unit hashes."""

from __future__ import annotations

import hashlib
import hmac
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.identity import bucket, canonical_json, conversation_id, fingerprint, hash_unit, in_treatment

# printf '%s' 'claude-migration-v1:user-1' | sha256sum | cut -c1-16, read as a number, modulo 10000.
VECTORS = [
    ("claude-migration-v1", "user-1"),
    ("claude-migration-v1", "søren"),
    ("e", "東京-42"),
    ("", ""),
]


@pytest.mark.parametrize(("salt", "unit"), VECTORS)
def test_bucket_is_the_contracts_hash(salt: str, unit: str) -> None:
    digest = hashlib.sha256((salt + ":" + unit).encode()).hexdigest()
    assert bucket(salt, unit) == int(digest[:16], 16) % 10_000


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_raising_the_percentage_moves_nobody_back(salt: str, unit: str, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert in_treatment(salt, unit, high) or not in_treatment(salt, unit, low)
    assert in_treatment(salt, unit, 100)
    assert not in_treatment(salt, unit, 0)


LETTERS = st.characters() | st.sampled_from(['"', "\\", "\x00", "\x7f", "\u2028", "\ud800", "\U0001f600"])


@given(st.text(LETTERS), st.text(LETTERS))
def test_a_conversations_id_is_the_fingerprint_of_its_opening(system: str, first: str) -> None:
    text = json.dumps([system, first], separators=(",", ":"))
    assert conversation_id(system, first) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert conversation_id(system, [first]) == fingerprint([system, [first]])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON))
def test_canonical_json_forgets_key_order_and_keeps_the_value(value: dict[str, object]) -> None:
    shuffled = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(shuffled)
    assert json.loads(canonical_json(value)) == value
    assert fingerprint(value) == fingerprint(shuffled)


def test_canonical_json_takes_lone_surrogates_and_refuses_nan() -> None:
    assert canonical_json("\ud800") == '"\\ud800"'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(math.nan)


def test_a_stored_unit_is_a_keyed_hash() -> None:
    assert hash_unit(b"k", "u") == hmac.new(b"k", b"u", hashlib.sha256).hexdigest()[:32]
    assert hash_unit(b"k", "u") != hash_unit(b"other", "u")
