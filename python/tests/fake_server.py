"""A server's admin interface over plain HTTP, with jobs that end as a test says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class FakeServer:
    """What the tests look at and change."""

    def __init__(self, kit: Path) -> None:
        self.kit = kit
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.sites: list[dict[str, Any]] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {}
        self.refusal: tuple[int, dict[str, Any]] | None = None
        #: How the next submitted job ends; None: it goes on.
        self.end: dict[str, Any] | None = {"state": "completed", "status": "completed"}
        self.keys: dict[str, str] = {}
        self.uploads: list[bytes] = []
        self.lock = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                status, data = outer.route(self.command, self.path, body, dict(self.headers))
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        kit.mkdir(parents=True, exist_ok=True)
        (kit / "port").write_text(str(self.http.server_address[1]))

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def finish(self, id: str, **end: Any) -> None:
        """Ends a job."""
        with self.lock:
            self.jobs[id].update(end)
            self.lock.notify_all()

    def add(self, **more: Any) -> str:
        id = f"job-{len(self.jobs) + 1}"
        self.jobs[id] = {
            "id": id, "name": "digits", "state": "running", "status": "round 1 of 3",
            "submitter": {"name": "lead@x.org", "org": "x", "role": "lead"},
            "submitted": "2026-01-01T00:00:00Z", "seconds": 1.5, "rounds_done": 0, "rounds": 3,
            "sites": 2, "priority": 0, "at": [{"site": "lyon", "state": "working"},
                                              {"site": "oslo", "state": "working"}],
            "bytes_up": 0, "bytes_down": 0, "spec": {}, **more,
        }  # fmt: skip
        self.events[id] = [
            {"seq": 1, "at": "", "kind": "state", "state": "running", "status": "running"},
            {"seq": 2, "at": "", "kind": "round_done", "round": 0, "rounds": 3, "contributed": 2,
             "sites": 2, "seconds": 0.25, "metrics": {"loss": 0.5}},
        ]  # fmt: skip
        self.files[id] = {
            "models/last.safetensors": b"model",
            "metrics/rounds.jsonl": b'{"round": 0}\n',
            "job.json": b"{}",
            "state/x.snapshot": b"s",
            "logs/lyon.log": b"hello\nworld\n",
            "logs/.lyon.at": b"12",
        }
        return id

    def ended(self, job: dict[str, Any]) -> bool:
        return job["state"] in ("completed", "completed_with_losses", "failed", "aborted", "refused")

    def route(
        self, method: str, target: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        words = [unquote(word) for word in parts.path.split("/")[2:]]
        if self.refusal is not None:
            status, problem = self.refusal
            return status, json.dumps(problem).encode()
        match method, words:
            case "GET", ["status"]:
                return self.ok({"name": "server", "version": "0.1.0", "started": "2026"})
            case "GET", ["sites"]:
                return self.ok({"sites": self.sites})
            case "POST", ["sites", name, "ask"]:
                ask = json.loads(body)
                self.asked.append((name, ask))
                return self.ok(self.answers.get(ask.get("op", ask["what"]), {}))
            case "GET", ["jobs"]:
                found = [j for j in self.jobs.values() if j["id"].startswith(query.get("id", ""))]
                found = found[::-1] if query.get("reverse") == "true" else found
                return self.ok({"jobs": found[: int(query.get("limit", 100))]})
            case "POST", ["jobs"]:
                key = {k.lower(): v for k, v in headers.items()}.get("firesteel-submit-key")
                if key in self.keys:
                    return self.ok({"id": self.keys[key], "existed": True})
                self.uploads.append(body)
                id = self.add()
                if key:
                    self.keys[key] = id
                if self.end:
                    self.finish(id, **self.end)
                return self.ok({"id": id, "existed": False}, 201)
            case method, ["jobs", id, *rest]:
                if id not in self.jobs:
                    return 404, json.dumps(
                        {"code": "job-not-found", "message": f"there is no job {id}"}
                    ).encode()
                return self.job(method, self.jobs[id], rest, query)
        return 404, json.dumps({"code": "no-route", "message": "no such route"}).encode()

    def job(
        self, method: str, job: dict[str, Any], rest: list[str], query: dict[str, str]
    ) -> tuple[int, bytes]:
        match method, rest:
            case "GET", []:
                return self.ok(job)
            case "DELETE", []:
                if not self.ended(job):
                    problem = {"code": "wrong-state", "message": "the job runs"}
                    return 409, json.dumps(problem).encode()
                del self.jobs[job["id"]]
                return 204, b""
            case "POST", ["abort"]:
                if not self.ended(job):
                    self.finish(job["id"], state="aborted", status="aborted: by lead@x.org")
                return self.ok(job)
            case "POST", ["clone"]:
                return self.ok({"id": self.add(), "existed": False}, 201)
            case "GET", ["events"]:
                with self.lock:
                    told = self.events[job["id"]][int(query["after"]) :]
                    if not told and not self.ended(job):
                        self.lock.wait(float(query.get("wait", 0)))
                    return self.ok({
                        "events": told, "next": len(self.events[job["id"]]),
                        "state": job["state"], "ended": self.ended(job),
                    })  # fmt: skip
            case "GET", ["files"]:
                files = self.files[job["id"]]
                return self.ok({"files": [{"path": p, "bytes": len(b)} for p, b in files.items()]})
            case "GET", ["files", *path]:
                return 200, self.files[job["id"]]["/".join(path)]
            case "GET", ["logs", site]:
                text = self.files[job["id"]].get(f"logs/{site}.log", b"")
                tail = int(query["tail"]) if "tail" in query else None
                return 200, b"".join(text.splitlines(True)[-tail:] if tail else [text])
        return 404, b"{}"

    @staticmethod
    def ok(value: Any, status: int = 200) -> tuple[int, bytes]:
        return status, json.dumps(value).encode()
