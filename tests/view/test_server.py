"""Every address answers, refuses what it must, and gives text as text."""

from __future__ import annotations

import csv
import http.client
import io
import json
import re
import shutil
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import pytest
from scipy.stats import gmean
from starlette.datastructures import Headers

from spo_core.credit.pairs import read_pairs
from spo_core.errors import DataError
from spo_core.observe.view_link import analysis_address, cell_address, run_address, work_address
from spo_core.paths import Paths
from spo_core.system.files import write_json
from spo_core.view import evaluation_pages
from spo_core.view.guard import Guard
from tests.observe.test_analysis_models import found
from tests.observe.test_analysis_page import analysis
from tests.view.conftest import HOSTILE, first_question, serving, trained

RUN = "/run/published/main"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\ufeff\u2028]")
NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?")
CELL = "/evaluation/published/main?cell=arithmetic-long"


def get(origin: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Ask with exactly these headers, beside Host."""
    parts = urlsplit(origin)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": parts.netloc} | {k.replace("_", "-"): v for k, v in headers.items()}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body


def addresses(project: Paths) -> list[str]:
    question = quote(first_question(project))
    tree = f"{RUN}/iteration/1/tree?question={question}"
    hostile = quote("train-<b>hostile")
    return [
        *("/", "/?format=csv", RUN, f"{RUN}?format=csv", f"{RUN}/figures.json?x=tokens", f"{RUN}?x=seconds"),
        *(f"/compare?run=published/main&run={quote('work/')}{hostile}", "/compare/figures.json?run=published/main"),
        *(f"{RUN}/iteration/3", f"{RUN}/iteration/1?only=split&sort=tokens&q=1", f"{RUN}/iteration/1?format=csv"),
        *(tree, f"{tree}&beside=1&colour=value", f"{RUN}/iteration/1/tokens.json?question={question}&nodes=0,1,2"),
        *("/evaluation", "/evaluation?format=csv", f"{CELL}&policy=final", f"{CELL}&policy=final&only=wrong&q=a"),
        *(f"{CELL}&policy=final&format=csv", f"{CELL}&a=warmup&b=final".replace("main?", "main/flips?"), "/analysis"),
        *(f"/run/work/{hostile}", f"/run/work/{hostile}/iteration/1?q=script", f"{tree}&format=csv"),
        *(f"/run/work/{hostile}/iteration/1/tree?question={quote(f'{t}-{i}')}" for i, t in enumerate(HOSTILE)),
        *(
            "/static/view.js",
            "/static/tree.js",
            "/static/style.css",
            "/static/view.css",
            "/static/plotly.js",
            "/health",
        ),
    ]


def test_every_page_answers_and_none_obeys_text(origin, project):
    for path in addresses(project):
        status, headers, body = get(origin, path)
        assert status == 200, (path, body[-300:])
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        if not path.startswith("/static"):
            for tag in ("<script>", "<img", "<iframe", "onerror='", "<b>hostile"):
                assert tag not in body or "text/csv" in headers["content-type"] or ".json" in path, (path, tag)
            assert not re.search(
                "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\ufeff\u2028]", body
            )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1:{port}.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://localhost:{port}"}, 200),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:{port}@evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
    ],
)
def test_other_hosts_and_other_sites_are_refused(origin, headers, status):
    port = str(urlsplit(origin).port)
    asked = {name: value.replace("{port}", port) for name, value in headers.items()}
    found, told, body = get(origin, "/", **asked)
    assert found == status and "access-control-allow-origin" not in told
    assert status == 200 or len(body) < 100


def test_the_port_is_named_and_left_out_where_clients_leave_it_out(origin):
    port = urlsplit(origin).port
    assert f"127.0.0.1:{port}" in get(origin, "/", Host="127.0.0.1:1")[2]
    for port in (80, 8421):
        guard = Guard(None, port)
        for host in ("127.0.0.1", "localhost", "[::1]"):
            for form, own in ((host, port == 80), (f"{host}:{port}", True), (f"{host}:9000", False)):
                for headers in ({"host": form}, {"host": f"{host}:{port}", "origin": f"http://{form}"}):
                    assert (guard.refused("GET", Headers(headers)) is None) == own, headers


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_nothing_can_be_changed(origin, method):
    assert get(origin, "/", method)[0] == 403


def test_only_runs_of_the_project_can_be_asked_for(origin, project):
    secret = project.root.parent / "secret-run"
    shutil.copytree(trained(project), secret, dirs_exist_ok=True)
    whole = quote(str(secret), safe="")
    for way in ("../../secret-run", "..%2f..%2fsecret-run", "%2e%2e/%2e%2e/secret-run", str(secret), whole):
        for place in ("run/work", "run", "evaluation/outputs", "static", "analysis"):
            assert get(origin, f"/{place}/{way}?cell=a&policy=b")[0] in (404, 422), (place, way)
    for name in ("..%2f..%2fparams%2frun.yaml", "../params/run.yaml", "/etc/passwd", "..", ".", "%00"):
        assert get(origin, f"/static/{name}")[0] == 404
        assert get(origin, f"/analysis/{name}")[0] in (200 if name in (".", "..") else 404, 404)
        assert get(origin, f"{CELL}&policy={name}")[0] == 404
        assert get(origin, f"{RUN}/iteration/1/measured.json?question=q&policy={name}")[0] == 404
    assert get(origin, f"{RUN}/iteration/1/tree?question=../../x")[0] == 404


def test_analyses_of_one_policy_and_of_several_are_listed_and_shown(origin, project):
    single, several = analysis("6-2-2", "<script>alert(1)</script>"), found("warmup", "final")
    root = project.root / "reports" / "analysis"
    write_json(root / "one" / "analysis.json", single)
    write_json(root / "several" / "analysis.json", several)
    for folder, each in zip(several["models"], several["analyses"], strict=True):
        write_json(root / "several" / folder / "analysis.json", each)
    listed = get(origin, "/analysis")[2]
    names = ["one", *(f"several/{folder}" for folder in several["models"])]
    for name in names:
        assert f'href="/analysis/{name}"' in listed
        status, _, body = get(origin, f"/analysis/{name}")
        assert status == 200 and "6-2-2" in body and "<script>alert" not in body
        (link,) = re.findall(r'href="([^"]*data\.json)"', body)
        assert json.loads(get(origin, urljoin(f"/analysis/{name}", link))[2])["candidates"]
    assert "cannot be read" not in listed and get(origin, "/analysis/several")[0] == 404
    shutil.rmtree(root)


def places(content: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in JSON-like content, as the keys that lead there."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def test_analyses_of_another_revision_are_refused_and_listed(tmp_path):
    """Whatever is missing in one, or is of another kind."""
    whole = analysis("6-2-2", "other")
    file = tmp_path / "reports" / "analysis" / "old" / "analysis.json"
    write_json(file, whole)
    rng, refused = np.random.default_rng(0), 0
    every = list(places(json.loads(file.read_text())))
    for trial, number in enumerate(rng.permutation(len(every))[:20]):
        *way, last = every[number]
        broken = json.loads(json.dumps(whole))
        parent, value = reduce(getitem, way, broken), (..., None, 7, "x", [])[trial % 5]
        if value is ...:
            del parent[last]
        else:
            parent[last] = value
        write_json(file, broken)
        try:
            assert evaluation_pages.analysis_page(Paths(tmp_path), "old").status_code == 200
        except DataError as error:
            refused += "flows.analyse" in str(error)
        assert evaluation_pages.analyses_page(Paths(tmp_path)).status_code == 200
    assert refused > 3
    for text in ("", "{", "[]", "7", '{"model": 1}', "\0", "[" * 10):
        file.write_text(text)
        with pytest.raises(DataError, match="another revision"):
            evaluation_pages.analysis_page(Paths(tmp_path), "old")
        assert b"cannot be read" in evaluation_pages.analyses_page(Paths(tmp_path)).body
    with pytest.raises(DataError, match="another revision"):
        evaluation_pages.analysis_data(Paths(tmp_path), "old")


WRONG = (
    *("/nowhere", "/run/a", "/docs", "/openapi.json", "/compare", "/compare?run=a/b", "/analysis/none"),
    *(f"{RUN}/iteration/{rest}" for rest in ("99", "x", "1/tokens.json?question=q&nodes=a", "1/tree?question=no")),
)


@pytest.mark.parametrize("path", WRONG)
def test_wrong_addresses_are_refused_on_a_page(origin, path):
    status, _, body = get(origin, path)
    assert status in (404, 422) and "Traceback" not in body


def test_tables_come_as_csv_that_no_spreadsheet_obeys(origin, project):
    hostile = quote("train-<b>hostile")
    _, headers, body = get(origin, f"/run/work/{hostile}/iteration/1?format=csv")
    assert headers["content-type"].startswith("text/csv") and "attachment" in headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(body)))
    assert len(rows) == len(HOSTILE)
    texts = [value for row in rows for key, value in row.items() if key in ("question", "answer", "question_id")]
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@"))]
    assert any(text.startswith("'=HYPERLINK") for text in texts)
    metrics = list(csv.DictReader(io.StringIO(get(origin, f"{RUN}?format=csv")[2])))
    own = [json.loads(line) for line in (project.training / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["rollout/reward"]) for row in metrics] == [row["rollout/reward"] for row in own]


def test_a_tree_s_nodes_come_as_csv(origin, project):
    """A row for each node, with the numbers of the files and the texts of none that a spreadsheet obeys."""
    folder = trained(project) / "iterations" / "000001"
    for tree, credit in read_pairs(folder):
        address = f"{RUN}/iteration/1/tree?question={quote(tree.question_id)}&format=csv"
        rows = list(csv.DictReader(io.StringIO(get(origin, address)[2])))
        assert [int(row["node"]) for row in rows] == list(range(len(tree.nodes)))
        for index, (row, node) in enumerate(zip(rows, tree.nodes, strict=True)):
            assert row["parent"] == ("" if index == 0 else str(node.parent))
            assert (int(row["depth"]), int(row["tokens"])) == (len(tree.path(index)) - 1, len(node.token_ids))
            assert row["reward"] == ("" if np.isnan(node.reward) else str(node.reward)) and row["finish"] == node.finish
            assert row["outcome"] == node.outcome and float(row["value"]) == credit.values[index]
            if index:
                assert float(row["advantage"]) == credit.advantage(index)
                probabilities = np.exp(node.logprobs.astype(np.float64))
                assert float(row["log_probability"]) == pytest.approx(np.log(np.prod(probabilities)), abs=1e-9)
                assert float(row["mean_token_probability"]) == pytest.approx(gmean(probabilities))
    hostile = quote("train-<b>hostile")
    for number, text in enumerate(HOSTILE):
        address = f"/run/work/{hostile}/iteration/1/tree?question={quote(f'{text}-{number}')}&format=csv"
        status, headers, body = get(origin, address)
        assert status == 200 and headers["content-type"].startswith("text/csv") and not OBEYED.search(body)
        cells = [cell for row in csv.reader(io.StringIO(body)) for cell in row if not NUMBER.fullmatch(cell)]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_questions_have_their_seconds_and_a_run_of_before_a_dash(origin, project, tmp_path):
    rows = list(csv.DictReader(io.StringIO(get(origin, f"{RUN}/iteration/1?format=csv&sort=seconds")[2])))
    took = [float(row["sampling_seconds"]) + float(row["grading_seconds"]) for row in rows]
    assert len(took) == 6 and took == sorted(took, reverse=True) and min(took) > 0
    row = json.loads((trained(project) / "metrics.jsonl").read_text().splitlines()[0])
    assert max(float(r["sampling_seconds"]) for r in rows) <= row["timing/rollout"]
    paths = Paths(tmp_path / "copy")
    shutil.copytree(project.root, paths.root)
    for file in paths.root.rglob("seconds.json"):
        file.unlink()
    with serving(paths) as other:
        for address in (f"{RUN}/iteration/1", f"{RUN}/iteration/1?sort=seconds"):
            status, _, body = get(other, address)
            assert status == 200 and body.count('<td class="n" data-sort="-1">–</td>') == 2 * 6
        bare = csv.DictReader(io.StringIO(get(other, f"{RUN}/iteration/1?format=csv")[2]))
        assert {row["sampling_seconds"] for row in bare} == {""}


def test_addresses_that_others_link_to_are_pages(origin, project):
    for address in (run_address(None), work_address(trained(project)), cell_address(None, "final", "arithmetic-long")):
        assert get(origin, address)[0] == 200
    name = "warmup-to-final/odd name%#"
    write_json(project.analysis(name) / "analysis.json", {"name": name})
    try:
        assert "by another revision" in get(origin, analysis_address(name))[2] != get(origin, "/analysis/x")[2]
    finally:
        shutil.rmtree(project.analysis("warmup-to-final"))


def test_what_is_being_written_is_told_and_not_shown(project, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(project.root, root)
    paths = Paths(root)
    run = trained(paths)
    folder = run / "iterations" / "000004"
    folder.mkdir()
    shutil.copy(run / "iterations" / "000003" / "questions.json", folder)
    with serving(paths) as origin:
        at = f"/run/work/{run.name}/iteration/4"
        assert get(origin, at)[0] == 404 and "not kept" in get(origin, at)[2]
        whole = (run / "iterations" / "000003" / "trees.parquet").read_bytes()
        (folder / "trees.parquet").write_bytes(whole[: len(whole) // 2])
        assert get(origin, at)[0] == 404 and "being written" in get(origin, at)[2]
        (folder / "trees.parquet").write_bytes(whole)
        status, _, body = get(origin, at)  # without credit yet
        assert status == 200 and "6 questions" in body
        assert "Groups without signal</span><b>–</b>" in body and "no signal (0)" in body
        rows = list(csv.DictReader(io.StringIO(get(origin, f"{at}?format=csv")[2])))
        assert {(row["signal"], row["strongest_advantage"], row["value"]) for row in rows} == {("", "", "")}
        (run / "metrics.jsonl").open("a").write('{"iteration": 4, "rollout/rew')
        assert get(origin, RUN)[0] == 200
