"""README and docs against the code: what they name exists, citations resolve, and README stays short."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import types
import typing
from functools import cache
from pathlib import Path

import pydantic
import pytest
import yaml
from rich.console import Console

from spo_core.config import NAMESPACES, Params, load_params
from spo_core.observe.summary import print_summary
from spo_core.paths import Paths
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "reference.md"
FOLDERS = ("benchmarks", "constraints", "docs", "flows", "kubernetes", "params", "spo_core", "tasks", "tests")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def without_blocks(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def commands(text: str) -> list[str]:
    """Lines of code blocks that are not of another language, and code within sentences; comments are cut off."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```|^((?: {4}.*\n)+)", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in "".join(block).splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks(text))]
    return [re.sub(r"(^|\s)#.*", "", line) for line in lines]


def anchor(heading: str) -> str:
    """The address of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(h) for h in re.findall(r"^#+ (.+)$", without_blocks(page.read_text()), re.MULTILINE)}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 2000


def test_readme_shows_what_the_demo_printed():
    """The table of the committed metrics, which ``make demo`` wrote."""
    out = io.StringIO()
    print_summary(Paths(ROOT), Console(file=out, width=100, highlight=False))
    (shown,) = re.findall(r"and prints:\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [line.rstrip() for line in shown.splitlines()] == [line.rstrip() for line in out.getvalue().splitlines()]


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page.read_text())):
        if re.match(r"https?:", target):
            continue
        file, _, place = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name} links to {target}"
        if place:
            assert place in anchors(found), f"{page.name} links to {target}"


@each_page
def test_every_page_is_linked_from_readme(page):
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", (ROOT / "README.md").read_text()))
    assert page.name == "README.md" or f"docs/{page.name}" in linked


@each_page
def test_files_that_are_named_exist(page):
    """Where a path begins with a folder that is versioned; ``*`` and placeholders match anything."""
    named = re.findall(rf"(?<![\w/.:])(?:{'|'.join(FOLDERS)})/[\w./*<>-]*", page.read_text())
    for path in {name.rstrip(".") for name in named}:
        pattern = re.sub(r"<[^>]*>", "*", path).rstrip("/")
        example = pattern in {f"params/presets/{name}.yaml" for name in ("sums", "chat", "mixed")}  # the reader's own
        assert example or any(ROOT.glob(pattern)), f"{page.name} names {path}"


@each_page
def test_modules_and_targets_of_commands_exist(page):
    text = page.read_text()
    makefile = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for module in set(re.findall(r"python -m\s+((?:flows|spo_core|benchmarks)[\w.]*)", text)):
        assert importlib.util.find_spec(module.rstrip(".")), f"{page.name} runs {module}"
    for command in commands(text):
        for target in re.findall(r"^(?:\w+=\S+ )?make (?:\w+=\S+ )?([\w-]+)(?![\w=-])", command):
            assert target in makefile, f"{page.name}: make {target}"


@each_page
def test_presets_and_overrides_of_commands_are_read(page):
    for command in commands(page.read_text()):
        if not re.search(r"python -m (flows|spo_core\.credit)", command):
            continue
        preset = re.search(r"--preset ([\w.-]+)", command)
        given = [a or b for a, b in re.findall(r"--set (?:'([^']+)'|(\S+))", command)]
        if preset and preset[1] == "PRESET":
            continue
        load_params(ROOT, preset[1] if preset else None, tuple(given))


@cache
def deployments() -> set[str]:
    entries = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return {f"{entry['entrypoint'].rpartition('.')[2]}/{entry['name']}" for entry in entries}


@each_page
def test_deployments_exist(page):
    for name in re.findall(r"prefect deployment run ([\w./-]+)", page.read_text()):
        assert name in deployments(), f"{page.name} runs deployment {name}"


def models(annotation: object) -> list[type[pydantic.BaseModel]]:
    """Models that a field's type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_origin(annotation) is not None:
        return [model for argument in typing.get_args(annotation) for model in models(argument)]
    if isinstance(annotation, types.UnionType):
        return [model for argument in annotation.__args__ for model in models(argument)]
    return []


def is_key(name: str) -> bool:
    """Whether a dotted name is one of the params; below a mapping anything is."""
    holders: list[type[pydantic.BaseModel]] = [Params]
    for part in name.split("."):
        fields = [model.model_fields[part] for model in holders if part in model.model_fields]
        if not fields:
            return False
        if any("dict" in str(field.annotation) for field in fields):
            return True
        holders = [model for field in fields for model in models(field.annotation)]
    return True


@each_page
def test_params_that_are_named_exist(page):
    files = {"evaluate.yaml", "run.py"}
    for code in re.findall(r"`([^`\n]+)`", without_blocks(page.read_text())):
        found = re.match(rf"((?:{'|'.join(NAMESPACES)})(?:\.\w+)+)(?:[:=]|$)", code)
        if found and found[1] not in files:
            assert is_key(found[1]), f"{page.name} names param {found[1]}"


def test_the_search_for_params_finds():
    assert is_key("learn.backend.ranks") and is_key("rollout.engine.options") and is_key("credit.value.rollouts")
    assert not is_key("learn.backends") and not is_key("credit.value.rolls")


# a citation: ``docs/reference.md 1.1 step 7 and 1.3``
SECTION = r"\d(?:\.\d)?(?: (?:step|item) \d+)?"
CITATION = re.compile(rf"docs/reference\.md ({SECTION}(?:(?:, | and ){SECTION})*)")


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    kinds = {".py", ".yaml", ".toml", ".json", ".md", ".in"}
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in paths if path.suffix in kinds and path.is_file() and path != Path(__file__)]


def joined(text: str) -> str:
    """A file without the line breaks of its prose and comments."""
    return re.sub(r"\s*\n\s*(?:# )?", " ", text)


def cited(text: str) -> list[str]:
    """Sections, and their steps or items, that a file cites: ``1.3``, ``1.1 step 7``."""
    return [part for citation in CITATION.findall(joined(text)) for part in re.split(", | and ", citation)]


def resolvable() -> set[str]:
    """Numbers of the reference's sections, and of the numbered items in each, which are steps or items."""
    found, section = set(), ""
    for line in REFERENCE.read_text().splitlines():
        if heading := re.match(r"#+ (\d(?:\.\d)?)\.? ", line):
            section = heading[1]
            found.add(section)
        elif item := re.match(r"(\d+)\. ", line):
            found |= {f"{section} {word} {item[1]}" for word in ("step", "item")}
    return found


def test_citations_of_the_reference_resolve():
    known, count = resolvable(), 0
    for path in sources():
        text, name = path.read_text(), path.relative_to(ROOT)
        found = cited(text)
        assert set(found) <= known, f"{name} cites {sorted(set(found) - known)}"
        if path.suffix != ".md":  # a page may link to the reference as a whole
            citations = len(CITATION.findall(joined(text)))
            assert citations == text.count("docs/reference.md"), f"{name}: a citation names no section"
            assert not re.search(r"reference facts|\bfacts \d", joined(text), re.IGNORECASE), f"{name}: another form"
        count += len(found)
    assert count >= 30


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("(docs/reference.md 1.1 step 7)", ["1.1 step 7"]),
        ("docs/reference.md\n# 3.1, 3.3 and 3.7. Where", ["3.1", "3.3", "3.7"]),
        ("docs/reference.md 1.3 and 6 item 9)", ["1.3", "6 item 9"]),
        ("docs/reference.md 2); a key", ["2"]),
    ],
)
def test_citations_are_read(text, sections):
    assert cited(text) == sections
    assert set(sections) <= resolvable()
