# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/handoff.md against the code: messages, fields, errors, limits, features; every example is parsed."""

import json
import re
from pathlib import Path

import pytest

from tests.support.documents import item_key, items, section
from vmmswap.errors import ALL, PREFIX, ProtocolError, VmmswapError
from vmmswap.handoff import fds, messages, refusal, session
from vmmswap.handoff.client import VmmClient
from vmmswap.handoff.receiver import Limits
from vmmswap.linux import userfaultfd

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "handoff.md").read_text()
MESSAGES = (
    messages.Register,
    messages.AddProcess,
    messages.AddRegion,
    messages.RemoveRegion,
    messages.Attach,
)


def table(heading: str) -> dict[str, str]:
    """The table whose head begins so: the first cells, without backquotes, and the second ones."""
    found = re.search(rf"^\| {re.escape(heading)} .*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert found, f"docs/handoff.md has no table {heading!r}"
    cells = [line.strip("|").split("|") for line in found[1].splitlines()]
    return {row[0].strip().strip("`"): row[1].strip() for row in cells}


def errors() -> set[str]:
    """The errors that a hand-off may be answered with, as the list below the answers names them."""
    text = section(TEXT, "## Errors")
    return {item_key(item) for item in items(text)}


def examples() -> list[tuple[str, int]]:
    """What VMMs send, with the number of fds that come with it."""
    found = re.findall(r"^    -> (.*?)\n       fds: (.*?)$", TEXT, re.MULTILINE | re.DOTALL)
    return [(text, 0 if names == "none" else len(names.split(", "))) for text, names in found]


def answers() -> list[dict[str, str]]:
    return [json.loads(line) for line in re.findall(r"^    <- (.*)$", TEXT, re.MULTILINE)]


def code_types() -> set[str]:
    with pytest.raises(ProtocolError) as caught:
        messages.parse(b'{"type":"?"}', 0)
    return set(caught.value.message.partition(" is none of ")[2].split(", "))


def parse(text: str, fd_count: int) -> messages.Message:
    how = messages.parse_firecracker if text.startswith("[") else messages.parse
    return how(text.encode(), fd_count)


def test_the_message_types() -> None:
    assert set(table("type")) == code_types()


def test_every_example_parses_and_each_message_has_one() -> None:
    parsed = [type(parse(*example)) for example in examples()]
    assert TEXT.count("    -> ") == len(parsed)
    assert set(parsed) == {*MESSAGES, messages.FirecrackerRegister}


@pytest.mark.parametrize("example", examples())
def test_the_number_of_fds_matters(example: tuple[str, int]) -> None:
    text, fd_count = example
    with pytest.raises(ProtocolError, match="fds: "):
        parse(text, fd_count + 2)


def test_the_answers() -> None:
    source = "".join(Path(module.__file__).read_text() for module in (session, refusal))
    sent = set(re.findall(r'"type": "(\w+)"', source))
    assert set(table("answer")) == sent == {answer["type"] for answer in answers()}


def test_the_errors() -> None:
    named = {*errors(), *re.findall(r"`(NoSuchVM|InvalidName|PagesLost)`", TEXT)}
    assert {PREFIX + name for name in named} == {cls.dbus_name for cls in ALL}
    assert set(re.findall(rf"{re.escape(PREFIX)}(\w+)", TEXT)) <= named


def test_an_error_is_the_one_that_comes() -> None:
    [told] = [item for item in answers() if item.get("error") == PREFIX + "InvalidRegion"]
    text, fd_count = examples()[0]
    with pytest.raises(VmmswapError) as caught:
        parse(text.replace("1073741824", "4097"), fd_count)
    assert caught.value.dbus_name == told["error"]
    assert caught.value.message.startswith(told["message"].removesuffix("..."))


@pytest.mark.parametrize(("field", "where"), table("field").items())
def test_a_field_is_read_where_the_table_says(field: str, where: str) -> None:
    """One of the wrong type is refused there, by name, and ignored elsewhere."""
    parsed = [(json.loads(text), count) for text, count in examples() if text.startswith("{")]
    by_type = {str(message["type"]): (message, count) for message, count in parsed}
    # `regions` are objects in all messages but attach, where they are strings: read in all.
    is_everywhere = where == "all" or field == "regions"
    readers = set(by_type) if is_everywhere else set(re.findall(r"`([\w-]+)`", where))
    for kind, (message, count) in by_type.items():
        wrong = json.dumps({**message, field: {}})
        if kind in readers:
            with pytest.raises(ProtocolError, match=rf"^{field}\b"):
                parse(wrong, count)
        else:
            parse(wrong, count)


def test_the_fields_of_a_region() -> None:
    text, fd_count = examples()[0]
    message = json.loads(text)
    [region] = message["regions"]
    assert set(table("field of a region")) == set(region)
    for field in region:
        message["regions"] = [{**region, field: "x"}]
        with pytest.raises(ProtocolError, match=rf"regions\[0\]\.{field}: "):
            parse(json.dumps(message), fd_count)


def test_the_limits() -> None:
    limits = Limits()
    assert [float(value) for value in table("what").values()] == [
        limits.message_bytes,
        limits.firecracker_bytes,
        limits.fds,
        messages.MAX_REGIONS,
        messages.MAX_TOTAL_BYTES,
        limits.silence_s,
        limits.message_s,
        limits.reply_s,
        limits.connections_per_uid,
        limits.connections,
    ]


def test_the_features_of_a_userfaultfd() -> None:
    section = TEXT.split("## The userfaultfd\n")[1].split("\n## ")[0]
    wanted = {feature.name for feature in userfaultfd.Feature if feature in userfaultfd.WANTED}
    forbidden = {feature.name for feature in fds._FORBIDDEN}
    assert set(re.findall(r"`([A-Z_]+)`", section)) == wanted | forbidden


def test_links_and_names_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / link).exists(), link
    name = f"`{VmmClient.__module__}.{VmmClient.__qualname__}`"
    assert name in TEXT
    assert name in (ROOT / "README.md").read_text()
