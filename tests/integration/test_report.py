"""`batchd report` on what the real loop leaves in the spool: what is known is shown, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from config.settings import PoolsSettings
from daemon.main import main
from daemon.page import page
from spool import batch, layout, lines, parts
from tests import pages
from tests.loops import Daemon, Paced, cancelled, ended
from tests.pages import text_of

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
SETTINGS = "models: [{name: m, kind: echo}]\n"
PRICES = SETTINGS + "scheduler: {pools: {spot: {price_per_hour: 3600}}}\n"


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A loop, whose spool the command finds by the environment; the page comes into the current folder."""
    made = Daemon(tmp_path, run=Paced(128))
    made.run.may_go_on.set()
    monkeypatch.setenv("BATCHD_SPOOL__ROOT", str(made.home.root))
    monkeypatch.chdir(tmp_path)
    yield made
    made.stop()


def _report(*arguments: str, file: str = "jan.report.html") -> str:
    assert main(["report", *(arguments or ("jan",))]) == 0
    return text_of(Path(file))


def test_a_page_of_a_batch_without_errors(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Each section is there, and where the page is."""
    daemon.drop(count=300)
    ended(daemon)
    text = _report()
    assert capsys.readouterr().out == "jan.report.html\n"
    for section in ("Timeline", "Throughput", "Latency", "Tokens", "Errors", "Deadline", "Pools", "Details"):
        assert f"\n{section}\n" in text
    assert "None: every request so far was answered." in text
    assert "results\n300" in text
    assert "300 answers do not say their tokens" in text  # nor does the stand-in say how long it took
    assert "Not known: no part says how long the engine took." in text
    assert "before its deadline" in text
    assert "\nCost\n" not in text


def test_a_price_makes_a_cost(daemon: Daemon) -> None:
    """Of the pools that it used, at what the settings say now."""
    daemon.drop(count=3)
    ended(daemon)
    Path("prices.yaml").write_text(PRICES)
    text = _report("jan", "--config", "prices.yaml")
    [one, two] = [
        event["at"] for event in daemon.extra()["history"] if event["phase"] in ("running", "merging")
    ]
    assert "\nCost\n" in text and "at most" in text
    cost = float(text.partition("an hour = ")[2].split()[0])
    assert cost == pytest.approx(two - one, rel=0.01, abs=0.01)
    Path("prices.yaml").write_text(PRICES.replace("spot", "dedicated"))
    assert "\nCost\n" not in _report("jan", "--config", "prices.yaml")


def test_a_cancelled_batch_says_what_was_not_run(daemon: Daemon) -> None:
    cancelled(daemon)
    text = _report()
    assert "batch_cancelled\n172 · 100 %" in text
    assert "The first \na128\n: the batch was cancelled before this request was run" in text
    assert "results\n128" in text  # what nothing worked on has no time


def test_a_failed_validation_lists_its_errors_and_claims_no_work(daemon: Daemon) -> None:
    (daemon.home.inbox / "jan.jsonl").write_text("no json\n{}\n")
    ended(daemon)
    text = _report()
    assert "line 1" in text and "invalid_json_line" in text and "line 2" in text
    for section in ("Throughput", "Latency", "Tokens", "Pools"):
        assert f"\n{section}\n" not in text


def test_a_batch_that_goes_on_is_shown_as_of_now(daemon: Daemon) -> None:
    """By the parts that it shows its user: counted, timed, and said to be no end."""
    daemon.run.may_go_on.clear()
    daemon.drop(count=300)
    daemon.until(daemon.phase("running"))
    daemon.until(lambda: daemon.run.answered == 128)
    daemon.until(lambda: list((daemon.home.outbox / "jan").glob("partial/*")))
    text = _report()
    assert "it has not ended yet" in text
    assert "results\n128" in text
    assert "total\n128\nmean\n1" in text  # of answers; the stand-in writes one token of each
    daemon.run.may_go_on.set()
    ended(daemon)
    assert "it has not ended yet" not in _report()


def test_a_batch_that_shows_no_part_yet_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when its window ends like that, that nothing was worked on."""
    daemon = Daemon(tmp_path, run=Paced(0))
    monkeypatch.setenv("BATCHD_SPOOL__ROOT", str(daemon.home.root))
    monkeypatch.chdir(tmp_path)
    daemon.drop(count=3, sidecar="completion_window: 90m\n")
    daemon.until(daemon.phase("running"))
    assert "Not known: no part is shown" in _report()
    daemon.until(daemon.is_at("expired"), later_s=5401)
    daemon.until(lambda: not daemon.lifecycle.held, later_s=5401)
    text = _report()
    assert "batch_expired\n3 · 100 %" in text
    assert "Not known: no request was worked on." in text
    daemon.stop()


def test_a_batch_whose_folder_was_moved_away_is_known_from_the_archive(daemon: Daemon) -> None:
    """By its name, the drop's, or its id; its results are said to be gone."""
    cancelled(daemon)
    batch_id = orjson.loads((daemon.home.outbox / "jan/status.json").read_bytes())["id"]
    shutil.move(daemon.home.outbox / "jan", "elsewhere")
    for name in ("jan", "jan.jsonl", batch_id):
        text = _report(name)
        assert "outbox/jan is gone, and its results with it" in text
        assert "172 requests failed." in text
        assert "results\n128" in text


def test_an_archive_that_was_cleaned_up_leaves_the_rest(daemon: Daemon) -> None:
    cancelled(daemon)
    for folder in daemon.home.archive.iterdir():
        shutil.rmtree(folder)
    text = _report()
    assert text.count("Not known: archive/ does not hold it") == 2
    assert "batch_cancelled\n172 · 100 %" in text


def test_an_archive_of_another_user_is_said_to_be_one(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users of the spool see the page all the same, with what outbox/ says."""
    cancelled(daemon)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(batch, "read_final", refuse)
    monkeypatch.setattr(batch, "read_record", refuse)
    text = _report()
    assert text.count("Not known: archive/ may be read by the daemon's user alone.") == 2
    shutil.move(daemon.home.outbox / "jan", "elsewhere")
    assert main(["report", "jan"]) == 2
    assert "archive/ may be read by the daemon's user alone" in capsys.readouterr().err


def test_an_outcome_of_an_older_version_says_that_it_does_not_know(daemon: Daemon) -> None:
    cancelled(daemon)
    [path] = daemon.home.archive.glob(f"*/{layout.FINAL_FILE}")
    tree = orjson.loads(path.read_bytes())
    del tree["timeline"], tree["latency"]
    path.write_bytes(orjson.dumps(tree))
    assert _report().count("Not known: the version of batchd that ended it did not record this.") == 2


def test_a_result_file_that_is_gone_costs_its_sections_alone(daemon: Daemon) -> None:
    cancelled(daemon)
    (daemon.home.outbox / "jan/output.jsonl").unlink()
    text = _report()
    assert "a result file cannot be read" in text
    assert "results\n128" in text


def test_a_name_that_does_not_exist_is_one_line_that_says_what_to_do(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nobody", "../jan", "batch_0", ""):
        assert main(["report", name]) == 2
        told = capsys.readouterr().err
        assert "`batchd status` lists those" in told and told.count("\n") == 1
    assert not list(Path().glob("*.html"))


def test_a_page_that_cannot_be_written_is_one_line(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.drop()
    ended(daemon)
    assert main(["report", "jan", "-o", "absent/page.html"]) == 1
    assert "absent/page.html cannot be written" in capsys.readouterr().err


def test_a_page_can_go_to_standard_output(daemon: Daemon, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    daemon.drop()
    ended(daemon)
    assert main(["report", "jan", "--output", "-"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"<!doctype html>")


def test_of_a_history_without_its_middle_nothing_is_reckoned(tmp_path: Path) -> None:
    """Runs are missing in it: no cost and no speed while running is told, and why is."""
    prices = PoolsSettings.model_validate({"spot": {"price_per_hour": 2}})
    facts = pages.sample(tmp_path)
    file = tmp_path / "page.html"
    file.write_bytes(page.render(facts, prices))
    assert "at most" in text_of(file) and "while running" in text_of(file)
    facts.shown.extra["attempt"] = 300
    file.write_bytes(page.render(facts, prices))
    text = text_of(file)
    assert "at most" not in text and "while running" not in text
    assert "Cannot be told" in text and "the middle of it was dropped" in text


def test_what_users_control_stays_text(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """custom_ids, metadata, names, messages and validation's own: none becomes an element."""
    plain = parts.write

    def write(folder: Path, shard: int, attempt: int, results: list[parts.Result]) -> parts.PartName:
        text = lines.error_line("x_0", HOSTILE, HOSTILE, HOSTILE)
        return plain(folder, shard, attempt, [each._replace(ok=False, text=text) for each in results])

    monkeypatch.setattr(parts, "write", write)
    name = layout.outbox_name(Path(f"{HOSTILE}.jsonl".replace("/", "")))
    quoted = HOSTILE.replace("'", "''")
    daemon.drop(HOSTILE.replace("/", ""), count=1, sidecar=f"metadata: {{'{quoted}': '{quoted}'}}\n")
    ended(daemon, name)
    text = _report(name, file=f"{name}.report.html")
    assert text.count(HOSTILE) >= 5
    (daemon.home.inbox / "bad.jsonl").write_text(
        f'{{"custom_id": "a", "method": {orjson.dumps(HOSTILE).decode()}}}\n'
    )
    ended(daemon, "bad")
    _report("bad", file="bad.report.html")
