"""`Session`, `ProdEnv` and their runs against a fake REST server."""

from __future__ import annotations

import json
import tarfile
import threading
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fake_server import FakeServer

from firesteel import Session, errors
from firesteel.recipe import FedAvgRecipe, ProdEnv
from firesteel.session import (
    MonitorReturnCode,
    TargetType,
    basic_cb_with_print,
    new_secure_session,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: Any) -> Iterator[FakeServer]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIRESTEEL_WORKSPACE_ROOT", raising=False)
    (tmp_path / "client.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("")
    made = FakeServer(tmp_path / "kit")
    made.sites = [
        {"name": "lyon", "org": "x", "state": "connected", "connected_since": "2026",
         "jobs": ["job-1"], "version": "0.1.0", "resources": {"gpus": {"total": 2, "free": 1}}},
        {"name": "oslo", "org": "y", "state": "gone", "version": "0.1.0"},
    ]  # fmt: skip
    yield made
    made.close()


@pytest.fixture
def session(server: FakeServer) -> Iterator[Session]:
    with Session("kit") as made:
        yield made


def recipe(**parameters: Any) -> FedAvgRecipe:
    given = {
        "name": "digits", "model": {"w": np.zeros(3)}, "train_script": "client.py",
        "min_clients": 2, "num_rounds": 3, **parameters,
    }  # fmt: skip
    return FedAvgRecipe(**given)


def members(upload: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=BytesIO(upload)) as bundle:
        return {m.name: bundle.extractfile(m).read() for m in bundle.getmembers()}  # type: ignore[union-attr]


class TestProdEnv:
    def test_a_job_goes_out_as_a_bundle_and_its_result_comes_back(
        self, server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = recipe().execute(ProdEnv("kit"))
        assert (run.get_job_id(), run.get_status()) == ("job-1", "completed")
        result = run.get_result()
        assert result == str(tmp_path / "firesteel-runs/digits/job-1")
        assert run.get_result() == result
        assert sorted(str(p.relative_to(result)) for p in tmp_path.glob("firesteel-runs/digits/job-1/**/*") if p.is_file()) == [
            "job.json", "logs/lyon.log", "metrics/rounds.jsonl", "models/last.safetensors",
        ]  # fmt: skip
        assert (tmp_path / "firesteel-runs/digits/latest").resolve() == tmp_path / result
        assert run.metrics() == [{"round": 0}]
        sent = members(server.uploads[0])
        spec = json.loads(sent["job.json"])
        assert spec["trainer"]["script"] == "client.py"
        assert spec["initial_model"] == "models/initial.safetensors"
        assert spec["sites"] == []
        assert {"code/client.py", "code/helper.py", "models/initial.safetensors"} < set(sent)
        told = capsys.readouterr().err
        assert "round 1/3: 2 of 2 sites, 0.2s, loss 0.5000" in told
        assert not list(tmp_path.glob("firesteel-runs/.bundle-*"))

    def test_execute_returns_before_the_job_ends(self, server: FakeServer) -> None:
        server.end = None
        run = recipe().execute(ProdEnv("kit", clients=["lyon", "oslo"]))
        assert run.get_status() == "round 1 of 3"
        assert run.get_result(timeout=0.2) is None
        ender = threading.Timer(0.1, server.finish, ["job-1"], {"state": "completed", "status": "completed"})
        ender.start()
        assert run.get_result()
        assert json.loads(members(server.uploads[0])["job.json"])["sites"] == ["lyon", "oslo"]

    def test_a_failed_job_says_what_failed_and_where_its_logs_are(self, server: FakeServer) -> None:
        server.end = {
            "state": "failed", "status": "failed: round 1 had 1 of 2 updates",
            "failures": [{"site": "lyon", "round": 0, "code": "trainer-exit", "phase": "train",
                          "message": "the trainer ended with code 1", "hint": "look at it"}],
        }  # fmt: skip
        run = recipe().execute(ProdEnv("kit"))
        with pytest.raises(errors.JobFailed) as failed:
            run.get_result()
        said = str(failed.value)
        assert "failed: round 1 had 1 of 2 updates" in said
        assert "lyon (train of round 1): the trainer ended with code 1" in said
        assert "firesteel-runs/digits/job-1" in said and "hint: look at it" in said
        assert failed.value.code == "trainer-exit"
        assert run.failures[0]["site"] == "lyon" and run.failures[0]["log_tail"] == []
        assert run.folder is not None

    def test_a_job_without_some_sites_is_an_error_only_when_strict(self, server: FakeServer) -> None:
        server.end = {"state": "completed_with_losses", "status": "completed with 1 of 2 sites"}
        run = recipe().execute(ProdEnv("kit"))
        assert run.get_result()
        assert run.get_status() == "completed with 1 of 2 sites"
        with pytest.raises(errors.Incomplete):
            recipe().execute(ProdEnv("kit"), strict=True).get_result()

    def test_an_aborted_job(self, server: FakeServer) -> None:
        server.end = None
        run = recipe().execute(ProdEnv("kit"))
        run.abort()
        assert run.get_status() == "aborted"
        run.abort()
        with pytest.raises(errors.JobAborted, match="by lead"):
            run.get_result()

    def test_what_cannot_work_is_refused_by_name(self, server: FakeServer) -> None:
        with pytest.raises(errors.SpecError, match="there is no folder"):
            ProdEnv("nowhere")
        (server.kit / "kit.toml").write_text('name = "lead@x.org"\n')
        ProdEnv("kit", username="lead@x.org")
        with pytest.raises(errors.SpecError, match="is the kit of 'lead@x.org'"):
            ProdEnv("kit", username="member@x.org")
        with pytest.raises(errors.SpecError, match="`study` is 'x'"):
            ProdEnv("kit", study="x")
        with pytest.raises(errors.SpecError, match="`resume` is True"):
            recipe().execute(ProdEnv("kit"), resume=True)

    def test_a_server_that_is_not_there(self, server: FakeServer) -> None:
        server.close()
        with pytest.raises(errors.NoConnection):
            recipe().execute(ProdEnv("kit", login_timeout=0.1))


@pytest.mark.parametrize(("code", "kind"), [
    ("invalid", errors.InvalidArgumentError),
    ("forbidden", errors.AuthorizationError),
    ("login-refused", errors.AuthenticationError),
    ("bundle-refused", errors.InvalidJobDefinition),
    ("key-taken", errors.SubmitTokenConflict),
    ("site-silent", errors.NoReply),
    ("something-new", errors.CommandError),
])  # fmt: skip
def test_refusals_are_exceptions(
    server: FakeServer, session: Session, code: str, kind: type[errors.SessionError]
) -> None:
    server.refusal = 418, {"code": code, "message": "it is so", "hint": "do that", "field": "f"}
    with pytest.raises(kind) as refused:
        session.list_jobs()
    assert str(refused.value) == "it is so\nhint: do that"
    assert refused.value.code == code
    if issubclass(kind, errors.InvalidArgumentError):
        assert refused.value.field == "f"  # type: ignore[attr-defined]


class TestSession:
    def test_an_exported_job_is_submitted_once_with_a_token(
        self, server: FakeServer, session: Session, tmp_path: Path
    ) -> None:
        path = recipe().export(tmp_path / "jobs")
        first = session.submit_job(path, submit_token="nightly")
        assert session.submit_job(path, submit_token="nightly") == first
        sent = members(server.uploads[0])
        assert json.loads(sent["job.json"])["trainer"]["script"] == "client.py"
        assert {"code/client.py", "code/helper.py", "models/initial.safetensors"} < set(sent)
        with pytest.raises(errors.InvalidJobDefinition, match="holds no job"):
            session.submit_job(tmp_path)

    def test_jobs_are_listed_shown_cloned_aborted_and_deleted(
        self, server: FakeServer, session: Session
    ) -> None:
        first, second = server.add(), server.add()
        assert [job["job_id"] for job in session.list_jobs()] == [first, second]
        assert [job["id"] for job in session.list_jobs(reverse=True, limit=1)] == [second]
        assert session.list_jobs(detailed=True, id_prefix=first)[0]["rounds"] == 3
        meta = session.get_job_meta(first)
        assert (meta["job_name"], meta["submitter_name"]) == ("digits", "lead@x.org")
        assert session.get_job_status(first) == "round 1 of 3"
        assert session.clone_job(first) == "job-3"
        with pytest.raises(errors.JobNotDone):
            session.delete_job(first)
        session.abort_job(first)
        assert session.get_job_status(first) == "aborted"
        session.delete_job(first)
        with pytest.raises(errors.JobNotFound):
            session.get_job_meta(first)

    def test_waiting_for_a_job(self, server: FakeServer, session: Session, capsys: Any) -> None:
        id = server.add()
        seen: list[str] = []

        def stop(session: Session, job_id: str, meta: dict[str, Any], word: str) -> bool:
            seen.append(f"{job_id} {meta['status']} {word}")
            return False

        assert session.monitor_job(id, 0, 0.1, stop, "x") is MonitorReturnCode.ENDED_BY_CB
        assert seen == [f"{id} round 1 of 3 x"]
        with pytest.raises(errors.JobTimeout, match="round 1 of 3"):
            session.wait_for_job(id, timeout=0.1)
        threading.Timer(0.1, server.finish, [id], {"state": "completed", "status": "completed"}).start()
        code = session.monitor_job(id, 0, 60, basic_cb_with_print)
        assert code is MonitorReturnCode.JOB_FINISHED
        assert capsys.readouterr().out.splitlines()[-1] == f"{id}: completed"

    def test_results_are_fetched(self, server: FakeServer, session: Session, tmp_path: Path) -> None:
        id = server.add()
        folder = session.download_job_result(id, tmp_path / "down")
        assert folder == str(tmp_path / "down" / id)
        assert (tmp_path / "down" / id / "models/last.safetensors").read_bytes() == b"model"
        assert not (tmp_path / "down" / id / "state").exists()
        assert "state/x.snapshot" in session.list_job_components(id)
        session.download_job_components(id)
        assert (tmp_path / id / "state/x.snapshot").read_bytes() == b"s"

    def test_what_the_federation_is(self, server: FakeServer, session: Session) -> None:
        id = server.add()
        info = session.get_system_info()
        assert [client.name for client in info.client_info] == ["lyon"]
        assert [job.job_id for job in info.job_info] == [id]
        assert session.report_version() == {"server": "0.1.0", "lyon": "0.1.0", "oslo": "0.1.0"}
        assert session.report_resources(targets=["lyon"])["lyon"]["gpus"]["free"] == 1
        assert session.get_client_job_status(["lyon"])[0]["job_id"] == "job-1"
        assert set(session.check_status(TargetType.CLIENT)) == {"clients"}
        server.answers["report"] = {"environment": {"os": "Linux"}}
        assert session.get_client_env() == [{"client": "lyon", "environment": {"os": "Linux"}}]
        with pytest.raises(errors.InvalidTarget, match="no site 'rome'"):
            session.get_client_env(["rome"])
        assert session.show_stats(id)["server"]["rounds"] == 3
        assert session.show_stats(id, "client", ["oslo"])["oslo"]["state"] == "working"
        server.jobs[id]["failures"] = [{"site": "lyon", "message": "m"}, {"message": "n"}]
        assert set(session.show_errors(id)) == {"lyon", "server"}
        assert set(session.show_errors(id, "client")) == {"lyon"}

    def test_logs_and_files(self, server: FakeServer, session: Session, tmp_path: Path) -> None:
        id = server.add()
        assert session.get_job_logs(id, "lyon", tail_lines=1) == {"lyon": "world\n"}
        assert session.get_job_logs(id, "lyon", grep_pattern="^h")["lyon"] == "hello\n"
        assert set(session.get_job_logs(id, "all")) == {"server", "lyon", "oslo"}
        server.answers["tail"] = {"text": "a\nb\n"}
        assert session.tail_target("lyon", "-n 2", "log.txt") == "a\nb\n"
        assert server.asked[-1] == (
            "lyon", {"what": "files", "op": "tail", "path": "log.txt", "lines": 2}
        )  # fmt: skip
        server.answers["grep"] = {"lines": [{"path": "log.txt", "line": 3, "text": "x"}]}
        assert session.grep_target("server", "-i -n", "X", "log.txt") == "3:x\n"
        assert server.asked[-1][1]["ignore_case"] is True
        server.answers["ls"] = {"entries": [{"path": "a", "folder": True}, {"path": "b"}]}
        assert session.ls_target("lyon") == "a/\nb\n"
        server.answers["cat"] = {"text": "all", "offset": 0, "end": 3, "bytes": 3}
        assert session.cat_target("lyon", file="b") == "all"
        for call in (
            lambda: session.ls_target("lyon", "; id"),
            lambda: session.tail_target("lyon", "-f /etc/passwd", "x"),
            lambda: session.grep_target("lyon", "$(id)", "x", "y"),
            lambda: session.cat_target("lyon"),
        ):
            with pytest.raises(errors.InvalidArgumentError):
                call()
        session.configure_site_log("DEBUG", "lyon")
        assert server.asked[-1] == ("lyon", {"what": "log_level", "level": "DEBUG"})
        (tmp_path / "levels.json").write_text("{}")
        session.configure_job_log(id, "levels.json", "oslo")
        assert server.asked[-1] == ("oslo", {"what": "log_config", "config": "{}", "job": id})

    def test_a_closed_session_says_so(self, session: Session) -> None:
        session.close()
        session.close()
        with pytest.raises(errors.SessionClosed):
            session.list_jobs()

    def test_processes_are_their_owners(self, session: Session) -> None:
        with pytest.raises(errors.CommandError, match="by their owners"):
            session.shutdown(TargetType.ALL)

    def test_the_name_that_flare_has(self, server: FakeServer) -> None:
        made = new_secure_session("lead@x.org", "kit")
        assert made.get_working_directory("lyon") == "."
        made.close()
        with pytest.raises(errors.KitError):
            Session("nowhere")
