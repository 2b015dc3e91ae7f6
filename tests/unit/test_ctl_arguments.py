# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: usage errors, help, and docs/vmmswapctl.md, which may not disagree with it."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from vmmswap import errors
from vmmswap.ctl.arguments import parser
from vmmswap.ctl.failure import ExitStatus, exit_status_of
from vmmswap.ctl.main import main
from vmmswap.ctl.verbs import VERBS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "vmmswapctl.md"


def verb_parsers() -> dict[str, argparse.ArgumentParser]:
    [action] = [item for item in parser()._actions if isinstance(item, argparse._SubParsersAction)]
    return dict(action.choices)


def test_every_verb_is_handled():
    assert set(verb_parsers()) == {*VERBS, "trace", "demo"}


@pytest.mark.parametrize("verb", sorted(verb_parsers()))
def test_every_verb_has_an_example_that_parses(verb):
    text = verb_parsers()[verb].format_help()
    [example] = re.findall(r"^example:\n  vmmswapctl (.*)$", text, re.M)
    words = shlex.split(re.sub(r'"\$\(.*\)"', "42", example.partition(" > ")[0]))
    assert parser().parse_args(words).verb == verb


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["wait", "web"],
        ["wait", "web", "InProgress"],
        ["wait", "web", "Active", "--timeout", "-1"],
        ["wait", "web", "Active", "--timeout", "nan"],
        ["list", "--columns", ""],
        ["list", "--sort", "nonsense"],
        ["enable", "web", "--nonsense"],
        ["enable", "web", "--no-w"],
        ["log", "restart", "web"],
        ["attach", "web", "-1"],
        ["attach", "web", "4194305"],
        ["attach", "web", "1e3"],
        ["attach", "web", "1", "--qmp", "q.sock"],
        ["attach", "web", "1", "--region"],
        ["attach", "web", "1", "--region", "7f00aa000"],
        ["attach", "web", "1", "--region", "7f00aa000-7f00aa000"],
        ["attach", "web", "1", "--region", "7f00ab000-7f00aa000"],
        ["attach", "web", "1", "--region", "7f00aa000-7f00ab000,7f00ac000-7f00ad000"],
        ["trace", "plot", "web"],
        ["demo", "--size", "0"],
        ["demo", "--size", "many"],
        ["demo", "--bus", "x"],
        ["--bus", "x", "--host", "y", "list"],
    ],
)
def test_bad_usage_is_one_line_and_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("vmmswapctl")
    assert "--help`" in err


@pytest.mark.parametrize(
    "words",
    [
        ["status", "../etc"],
        ["status", ""],
        ["enable", "a" * 65],
        ["list", "--host", ""],
        ["list", "--host=-oProxyCommand=x"],
        ["--bus", "x", "list", "--host", "y"],
        ["--bus", "x", "demo"],
        ["--host", "y", "trace", "stats", "web"],
    ],
)
def test_bad_values_are_one_line_and_2(words, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_bus_options_before_and_after_the_verb():
    for words in (["--bus", "x", "list"], ["list", "--bus", "x"]):
        assert parser().parse_args(words).bus == "x"
    assert parser().parse_args(["list"]).bus is None


def test_regions_to_attach_may_be_many():
    regions = ["7f00aa000-0x7f00ab000", "0-1000"]
    words = ["attach", "web", "1", *(f"--region={region}" for region in regions)]
    assert parser().parse_args(words).regions == regions
    assert parser().parse_args(words[:3]).regions == []


def test_exit_statuses_of_errors():
    special = {
        errors.NoSuchVMError: ExitStatus.NO_SUCH_VM,
        errors.InvalidNameError: ExitStatus.BAD_USAGE,
        errors.AccessDeniedError: ExitStatus.NOT_ALLOWED,
    }
    for cls in errors.ALL:
        assert exit_status_of(cls("x")) == special.get(cls, ExitStatus.FAILED)


def guide_sections() -> dict[str, str]:
    parts = re.split(r"^## `vmmswapctl ([a-z]+)", GUIDE.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_guide_has_a_section_for_each_verb_and_no_other():
    assert list(guide_sections()) == list(verb_parsers())


@pytest.mark.parametrize("verb", sorted(verb_parsers()))
def test_the_guide_names_the_same_options_and_example(verb):
    section = guide_sections()[verb]
    verb_parser = verb_parsers()[verb]
    shared = {"--help", "--bus", "--host", "--no-ask-password"}  # described once, at the top
    options = {name for item in verb_parser._actions for name in item.option_strings if name.startswith("--")}
    assert set(re.findall(r"`(--[a-z-]+)", section)) == options - shared
    [example] = re.findall(r"^example:\n  (.*)$", verb_parser.format_help(), re.M)
    assert f"    {example}\n" in section


def test_the_guide_lists_the_exit_statuses():
    table = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", GUIDE.read_text(), re.M))
    assert {int(code) for code in table} == {int(status) for status in ExitStatus}
    for code, text in re.findall(r"^  (\d)  (.*)$", parser().format_help(), re.M):
        assert table[code].startswith(text)
