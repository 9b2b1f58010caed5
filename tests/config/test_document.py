"""YAML documents: what JSON has is read as JSON reads it, what could be read in two ways is text or refused, and no
content of a file, however odd, gives anything but params or a refusal of a line or two."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from spo_core.config import NAMESPACES, load_params
from spo_core.config.document import parse_document, read_document
from spo_core.errors import ConfigError
from tests.conftest import ROOT

CALM = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
PLAIN = [
    "2024-01-01",
    "2024-01-01T10:00:00Z",
    "1:30",
    "12:30:45",
    "1_000",
    "yes",
    "No",
    "on",
    "OFF",
    "12e4567",
    "1e999",
]
PLAIN += ["-1e400", "0b11", "007e", "1e", "e5", "0o8", "0xg", "+-1", "1.2.3", "==", "=", "y", "nan", "inf", "Infinity"]
NUMBER = st.builds(
    "{}{}{}{}".format,
    *map(st.sampled_from, (["", "-", "+"], ["0", "007", "12345"], ["", ".", ".50"], ["", "e4", "E-09"])),
)
ODD = [*PLAIN, "!!binary aGk=", "!!set {a, b}", "!!timestamp 2024-01-01", "!!omap [a: 1]", "!!python/name:os.system"]
ODD += ["!own x", "!!int x", "!!float [1]", "!!map [1]", "9" * 5000, "0x" + "f" * 5000, "1" + "0" * 400, "[" * 300]
ODD += ["{a: " * 300, "&a [*a]", "&a {b: *a}", "*nowhere", "{<<: 1}", "{<<: {a: 1}, <<: {b: 2}}", '"\\ud800"', '"\\0"']
ODD += ["{a: 1, a: 2}", "{1: a, '1': b}", "{[1]: 2}", "{? {a: b} : c}", "[1, 2", "'", "%", "@", "`", "\t- 1", "--- 1"]
ODD += [
    "null",
    "~",
    "",
    "true",
    "-1",
    "0",
    "1.5",
    ".nan",
    "-.inf",
    "[]",
    "{}",
    "{type: custom}",
    "[{type: [1]}]",
    "\x07",
]
ODD += ["&a [&b [*c, *c], *b]", "..", "? a", "- a", "a: b: c", "\u2028", "\ufeffx", "\U0001f600", "é", "#", "| \n  x"]
odd = st.sampled_from(ODD) | TEXTS | JSON.map(json.dumps)


@given(JSON)
@CALM
def test_json_is_read_as_json_reads_it(content):
    again = parse_document("x", json.dumps(content)).content
    assert again == content and type(again) is type(content)


NUMERAL = re.compile(r"[-+.0-9xo_a-fA-F]+")


def texts_in(content) -> list[str]:
    """All texts among the values."""
    if isinstance(content, str):
        return [content]
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return [text for item in items for text in texts_in(item)]


@given(JSON, st.booleans(), st.sampled_from([True, False, None]))
@CALM
def test_what_a_yaml_writer_writes_is_read_back(content, flow, sort):
    written = yaml.safe_dump(content, default_flow_style=flow, allow_unicode=True, sort_keys=bool(sort))
    assume("\x85" not in written and "\u2028" not in written and "\u2029" not in written)  # a writer folds at these
    assume(not any(NUMERAL.fullmatch(text) for text in texts_in(content)))  # it leaves 0E0, text in YAML 1.1, plain
    assert parse_document("x", written).content == content


@given(NUMBER)
@CALM
def test_a_plain_number_is_a_number_and_a_quoted_one_is_text(text):
    whole = text.lstrip("+-").isdigit()
    found = parse_document("x", f"a: {text}\nb: '{text}'\nc: \"{text}\"").content
    assert found == {"a": int(text) if whole else float(text), "b": text, "c": text}
    assert isinstance(found["a"], int) == whole


@pytest.mark.parametrize("text", PLAIN)
def test_what_other_readers_take_for_dates_times_or_booleans_is_text(text):
    assert parse_document("x", f"a: {text}").content == {"a": text}
    assert parse_document("x", f"{text}: 1").content == {text: 1}  # keys are as they are written


def places(text: str) -> list[int]:
    """Numbers, from 0, of the lines with a key."""
    return [
        i for i, line in enumerate(text.splitlines()) if line.strip() and line.strip()[0] not in "#-" and ":" in line
    ]


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_key_that_stands_twice_is_refused_by_both_its_lines(name, tmp_path):
    """Every key of the committed files, repeated with all below it."""
    lines = (ROOT / "params" / f"{name}.yaml").read_text().splitlines()
    path = tmp_path / "x.yaml"
    for number in places("\n".join(lines)):
        depth = len(lines[number]) - len(lines[number].lstrip())
        block = [lines[number]]
        for line in lines[number + 1 :]:
            if line.strip() and len(line) - len(line.lstrip()) <= depth:
                break
            block.append(line)
        path.write_text("\n".join([*lines[:number], *block, *lines[number:]]), encoding="utf-8")
        again = number + 1 + len(block)
        with pytest.raises(ConfigError, match=rf"x\.yaml:{again}: key .* stands twice \(in line {number + 1} too\)"):
            read_document(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_another_encoding_is_refused_by_line_and_a_mark_of_utf_8_is_none_of_the_text(tmp_path, encoding):
    path = tmp_path / "x.yaml"
    path.write_bytes("a: 1\nb: é\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"x\.yaml:[12]: not "):
        read_document(path)
    path.write_bytes("a: 1\nb: é\n".encode("utf-8-sig"))
    assert read_document(path).content == {"a": 1, "b": "é"}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "params", root / "params")
    return root


def loaded_or_refused(root: Path, overrides: tuple[str, ...] = (), preset: str | None = None) -> str | None:
    """The message of the refusal, None for params."""
    try:
        load_params(root, preset, overrides)
    except ConfigError as error:
        assert 1 <= len(str(error).splitlines()) <= 2 and len(str(error)) < 1000
        return str(error)
    return None


KEYS = [
    (name, number)
    for name in (*NAMESPACES, "presets/spo-chain", "suites/long-cot")
    for number in places((ROOT / "params" / f"{name}.yaml").read_text())
]


@given(st.sampled_from(KEYS), odd)
@CALM
def test_any_value_at_any_key_gives_params_or_one_refusal_that_names_the_file(project, key, value):
    name, number = key
    path = project / "params" / f"{name}.yaml"
    before = path.read_text()
    lines = before.splitlines()
    lines[number] = f"{lines[number].partition(':')[0]}: {value}"
    try:
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        preset = name.removeprefix("presets/") if "presets/" in name else None
        overrides = ("evaluate.suite=long-cot",) if "suites/" in name else ()
        message = loaded_or_refused(project, overrides, preset)
        assert message is None or ".yaml" in message or message.startswith("params/: "), message
    finally:
        path.write_text(before)


FLAT = [key for name in NAMESPACES for key in parse_document("x", (ROOT / "params" / f"{name}.yaml").read_text()).lines]


@given(st.sampled_from(FLAT), odd)
@CALM
def test_any_override_gives_params_or_one_refusal(key, value):
    message = loaded_or_refused(ROOT, (f"{'.'.join(key)}={value}",))
    assert message is None or "\0" not in message


@given(st.sampled_from(NAMESPACES), st.integers(0, 10_000), st.binary(max_size=4), st.integers(0, 40))
@CALM
def test_damaged_bytes_give_params_or_one_refusal(project, name, at, inserted, removed):
    path = project / "params" / f"{name}.yaml"
    before = path.read_bytes()
    at %= len(before)
    try:
        path.write_bytes(before[:at] + inserted + before[at + removed :])
        loaded_or_refused(project)
    finally:
        path.write_bytes(before)


def test_a_wrong_value_is_refused_by_the_line_that_gave_it(project):
    preset = project / "params" / "presets" / "mine.yaml"
    preset.write_text("extends: spo-chain\n\nrun:\n  seed: 3\n  name: 5\n")
    try:
        with pytest.raises(ConfigError, match=r"mine\.yaml:5: run\.name: .*string \(given: 5\); put it in quotes"):
            load_params(project, "mine")
        with pytest.raises(ConfigError, match=r"^--set run\.name: run\.name: "):
            load_params(project, "mine", ("run.name=[]",))
        assert load_params(project, "mine", ("run.name='1e5'",)).run.name == "1e5"
        for refused in ("run.trackers=[{type: custom, path: 5}]", "credit.partition={type: cutpoints, size: 1}"):
            with pytest.raises(ConfigError, match=rf"^--set {refused.partition('=')[0]}: "):
                load_params(project, "spo-chain", (refused,))
    finally:
        preset.unlink()


@pytest.mark.parametrize("preset", ["", ".", "../presets/grpo", "base/rho1b", "\ud800", "a\0b"])
def test_a_name_that_is_no_presets_is_refused(preset):
    with pytest.raises(ConfigError, match="no preset"):
        load_params(ROOT, preset)
