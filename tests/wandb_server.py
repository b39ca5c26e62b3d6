"""A loopback Weights & Biases server, enough for the real client: runs are kept in memory, faults are made on demand.

Its answers were found by trying wandb 0.31. The file stream has the real server's semantics: a line is put at its
offset, so a chunk that is sent twice is kept once, and a client that resumes at the wrong line leaves a trace.

    with WandbServer() as server:
        ...  # WANDB_BASE_URL=server.url, WANDB_API_KEY=server.api_key
        server.runs["my-run"].history
"""

import base64
import gzip
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from tests.wandb_artifacts import Artifacts
from tests.wandb_views import Views

Fault = Literal[401, 429, 500, "hang", "half", "trickle"]
"""A status for every answer; no answer at all; half of a piece of history kept, and no answer to its sender, or half of
a file sent; or an answer that comes byte by byte."""


@dataclass(slots=True)
class Run:
    """One run as the server knows it; `lines` are history rows by their offset in the file stream.

    `num_rewritten` counts the lines that were sent again with another content.
    """

    run_id: str
    entity: str
    project: str
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    state: str = "running"
    uploads: dict[str, bytes] = field(default_factory=dict)
    num_opened: int = 0
    num_rewritten: int = 0
    is_preempting: bool = False
    heartbeat: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows in order, without the client's own columns (those that begin with an underscore)."""
        assert sorted(self.lines) == list(range(len(self.lines))), f"gaps in the history: {sorted(self.lines)}"
        return [{k: v for k, v in self.lines[i].items() if not k.startswith("_")} for i in range(len(self.lines))]

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(examples seen, value) of the rows that have the metric."""
        return [(row["examples_seen"], row[metric]) for row in self.history if metric in row]


class WandbServer(Artifacts, Views):
    """The server; a context manager.

    `runs` by run id; `deleted`, the ids that were used and may not come again; `closed`, the projects in which the
    key's user may not write; `unknown`, what it had no answer for; `asked`, the variables of every page of runs that
    was asked for; `num_met`, how many requests there were that the fault is about.
    """

    api_key = "local" + "0" * 35
    entity = "tester"

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, Run] = {}
        self.unknown: list[str] = []
        self.operations: list[str] = []
        self.deleted: set[str] = set()
        self.closed: set[str] = set()
        self.rewinds = True
        self.cut_off = threading.Event()
        self.asked: list[dict[str, Any]] = []
        self._counted: tuple[int, int, str] | None = None
        self._beats = itertools.count(1)
        self._faulty = range(0)
        self.num_met = 0
        self._fault: Fault | None = None
        self._fault_path = "/"
        self._recovered = threading.Event()
        self._lock = threading.RLock()
        self._is_away = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    def __enter__(self) -> Self:
        # The default poll would make every closing wait half a second.
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.recover()
        self._http.shutdown()
        self._http.server_close()

    def go_away(self) -> None:
        """Dies, as far as anyone can see: connections are refused, and those that are open end without an answer."""
        self._is_away = True
        self.__exit__()

    def come_back(self) -> None:
        """Listens on the same port again, and has all its runs."""
        self._http = ThreadingHTTPServer(("127.0.0.1", self._http.server_port), _handler(self))
        self._http.daemon_threads = True
        self._is_away = False
        self.__enter__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find this server and no other host."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.api_key, "WANDB_ERROR_REPORTING": "false"}

    def fail(self, fault: Fault, path: str = "/", after: int = 0, until: int | None = None) -> None:
        """Answers every request whose path holds `path` with this fault until `recover`.

        But for the first `after`, and those from number `until` on.
        """
        self._recovered.clear()
        self._fault, self._fault_path, self._faulty = fault, path, range(after, until or sys.maxsize)
        self.num_met = 0

    def is_trickling(self, path: str) -> bool:
        """Whether an answer comes byte by byte."""
        return self._fault == "trickle" and self._fault_path in path

    def recover(self) -> None:
        """Answers as usual again; requests that hang are cut off."""
        self._fault = None
        self._recovered.set()

    def count_late(self, num_rows: int, num_told: int, until: str = "") -> None:
        """Says that a run has `num_rows` rows, the last of which is number `num_told`, until it is asked for `until`.

        The real server counts rows some seconds after they came, and takes the last one from a cache: wandb's pull
        requests 12421 and 12668.
        """
        self._counted = (num_rows, num_told, until)

    # --- requests; each returns (status, body), or None for no answer -----------------------------------------------

    def answer(self, method: str, path: str, body: bytes, authorization: str) -> tuple[int, Any] | None:
        if self._is_away:
            return None
        fault = self._fault if self._fault_path in path else None
        if fault:
            self.num_met += 1
            fault = fault if self.num_met - 1 in self._faulty else None
        if fault == "hang":
            self._recovered.wait()
            return None
        if isinstance(fault, int):
            return fault, {"error": f"told to answer {fault}"}
        if method == "PUT":
            return self._upload(path, body)
        if method == "GET" and path.startswith("/artifact/"):  # signed URLs: no key
            data = self.download(path)
            return 200, data[: len(data) // 2] if data and fault == "half" else data
        if not self._knows(authorization):
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if method == "POST" and path.endswith("/file_stream"):
            return self._file_stream(path, json.loads(body))
        self.unknown.append(f"{method} {path}")
        return 404, {"error": "unknown path"}

    def _knows(self, authorization: str) -> bool:
        expected = base64.b64encode(f"api:{self.api_key}".encode()).decode()
        return authorization == f"Basic {expected}"

    def _upload(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.startswith("/artifact/"):
            return self.receive(path, body)
        _, _, run_id, name = path.split("/", 3)
        self.runs[run_id].uploads[name] = body
        return 200, {}

    def _file_stream(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        run = self.runs[path.split("/")[4]]
        files = body.get("files") or {}
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        content = history["content"]
        cut = self._fault == "half" and content
        with self._lock:
            kept = content[: max(1, len(content) // 2)] if cut else content
            sent = {history["offset"] + i: json.loads(line) for i, line in enumerate(kept)}
            run.num_rewritten += sum(_told(run.lines[i]) != _told(sent[i]) for i in sent.keys() & run.lines.keys())
            run.lines |= sent
        if cut:
            self.cut_off.set()
            self._recovered.wait()
            return None
        with self._lock:
            self.beat(run)
            for line in files.get("wandb-summary.json", {"content": []})["content"]:
                run.summary = json.loads(line)
            run.is_preempting |= bool(body.get("preempting"))
            if body.get("complete"):
                # docs.wandb.ai/models/runs/run-states: preempting, then an exit code other than 0, is "preempted".
                bad = "preempted" if run.is_preempting else "failed"
                run.state = "finished" if body.get("exitcode") == 0 else bad
        return 200, {}

    def _graphql(self, request: dict[str, Any]) -> tuple[int, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = match[1] if match else ""
        with self._lock:
            self.operations.append(name)
            if self._counted and name == self._counted[2]:
                self._counted = None
            resolve: Callable[[dict[str, Any]], Any] | None = getattr(self, f"_on_{name}", None)
            if resolve is None:
                self.unknown.append(name)
                return 200, {"errors": [{"message": f"this server does not know {name!r}"}]}
            given = request.get("variables") or {}
            if name == "Runs":
                given = {**given, "fields": set(re.findall(r"\w+", request["query"]))}
            if name == "UpsertBucket" and (refusal := self._refusal(given)):
                return refusal[0], {"errors": [{"message": refusal[1]}], "data": {"upsertBucket": None}}
            if name == "RewindRun" and (self.runs[given["runName"]].state == "running" or not self.rewinds):
                # In the words of wandb issue 10438; a server of one's own has no rewind.
                why = "a run that is not in a terminal state" if self.rewinds else "runs here"
                return 400, {"errors": [{"message": f"cannot rewind {why}"}], "data": {"rewindRun": None}}
            return 200, {"data": resolve(given)}

    def _refusal(self, given: dict[str, Any]) -> tuple[int, str] | None:
        """Why a run is not made or changed, in the real server's words: wandb issues 1192, 2484, 8609 and 9156."""
        entity = given.get("entity") or self.entity
        if entity != self.entity:
            return 404, f"entity {entity} not found during upsertBucket"
        if given.get("project") in self.closed:
            return 403, "permission denied"
        if given["name"] in self.deleted:
            return 409, f"run {given['name']} was previously created and deleted; try a new run name"
        return None

    # --- operations, by name ----------------------------------------------------------------------------------------

    def _on_Viewer(self, _: dict[str, Any]) -> Any:  # noqa: N802  # the client's own name for it
        teams = {"edges": [{"node": {"name": self.entity}}]}
        viewer = {"id": "viewer", "entity": self.entity, "username": self.entity, "email": "", "flags": "{}"}
        return {"viewer": viewer | {"name": self.entity, "admin": False, "teams": teams, "apiKeys": {"edges": []}}}

    _on_GetViewer = _on_GetDefaultEntity = _on_Viewer  # the public API's

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> Any:  # noqa: N802
        return {"entity": {"organization": {"coreWeaveOrganizationId": ""}}}

    def _on_RunStoppedStatus(self, _: dict[str, Any]) -> Any:  # noqa: N802
        return {"project": {"run": {"stopped": False}}}

    def _on_UpsertBucket(self, given: dict[str, Any]) -> Any:  # noqa: N802
        inserted = given["name"] not in self.runs
        project, entity = given.get("project") or "uncategorized", given.get("entity") or self.entity
        run = self.runs.setdefault(given["name"], Run(given["name"], entity, project))
        for key, value in (("groupName", "group"), ("jobType", "job_type"), ("displayName", "name"), ("tags", "tags")):
            if given.get(key) is not None:
                setattr(run, value, given[key])
        if given.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(given["config"]).items()}
        if given.get("groupName") is not None or inserted:
            run.num_opened += 1
            run.state, run.is_preempting = "running", False
        self.beat(run)
        bucket = self._bucket(run) | {"project": {"id": run.project, "name": run.project, "entity": self._entity(run)}}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_RunResumeStatus(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        bucket = self._bucket(run) | {"wandbConfig": json.dumps({"t": 1})}
        return {"model": {"id": run.project, "name": run.project, "entity": self._entity(run), "bucket": bucket}}

    def _on_RewindRun(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """docs.wandb.ai/models/runs/rewind, wandb 7711: rows after that step go, and the summary is computed anew."""
        run = self.runs[given["runName"]]
        run.lines = {i: line for i, line in run.lines.items() if line["_step"] <= given["metricValue"]}
        run.summary = {}
        bucket = self._bucket(run) | {"project": {"id": run.project, "name": run.project, "entity": self._entity(run)}}
        return {"rewindRun": {"rewoundRun": bucket}}

    def _on_CreateRunFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _on_Runs(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """A page: what the filters leave, in the order asked for, after a cursor; of each run the fields asked for."""
        self.asked.append(given)
        there = [run for run in self.runs.values() if (run.entity, run.project) == (given["entity"], given["project"])]
        if not there:
            return {"project": None}
        assert given["order"] == "+created_at", given["order"]
        filters = json.loads(given.get("filters") or "{}")
        runs = [run for run in there if all(self._fits(run, *item) for item in filters.items())]
        first = int(given["cursor"] or 0)
        page = runs[first : first + given["perPage"]]
        edges = [
            {
                "node": {key: value for key, value in self._bucket(run).items() if key in given["fields"]},
                "cursor": str(first + i),
            }
            for i, run in enumerate(page, start=1)
        ]
        info = {"endCursor": str(first + len(page)), "hasNextPage": first + len(page) < len(runs)}
        project = {"internalId": "1", "runCount": len(runs), "readOnly": False}
        return {"project": project | {"runs": {"edges": edges, "pageInfo": info}}}

    def _fits(self, run: Run, key: str, wanted: Any) -> bool:
        """MongoDB's filters, as far as they are used: a value, or one of several."""
        value = {"group": run.group, "name": run.run_id, "jobType": run.job_type}[key]
        return value in wanted["$in"] if isinstance(wanted, dict) else value == wanted

    def beat(self, run: Run) -> None:
        """The run has been heard of: its heartbeat is another one."""
        run.heartbeat = next(self._beats)

    def _on_Run(self, given: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(given["name"])
        return {"project": {"internalId": "1", "run": run and self._bucket(run)}}

    def _on_RunFullHistory(self, given: dict[str, Any]) -> Any:  # noqa: N802
        lines = self.runs[given["name"]].lines
        return {"project": {"run": {"history": [json.dumps(lines[i]) for i in sorted(lines)], "events": []}}}

    def _entity(self, run: Run) -> dict[str, str]:
        return {"id": run.entity, "name": run.entity}

    def _bucket(self, run: Run) -> dict[str, Any]:
        """A run in the server's words, for the client's engine and for its public API."""
        num_rows, num_told, _ = self._counted or (len(run.lines), len(run.lines), "")
        last = [json.dumps(run.lines[num_told - 1])] if run.lines else []
        keys = sorted({key for line in run.lines.values() for key in line})
        return {
            "id": f"storage-{run.run_id}",
            "name": run.run_id,
            "displayName": run.name,
            "group": run.group,
            "jobType": run.job_type,
            "tags": run.tags,
            "notes": None,
            "description": "",
            "commit": None,
            "sweepName": None,
            "readOnly": False,
            "state": run.state,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": f"2026-01-01T00:00:00.{run.heartbeat:06}",
            "projectId": "1",
            "user": {"name": self.entity, "username": self.entity},
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "summaryMetrics": json.dumps({**run.summary, "_step": num_told - 1} if run.lines else run.summary),
            "systemMetrics": "{}",
            "historyKeys": {"keys": {key: {} for key in keys}, "lastStep": len(run.lines)},
            "historyLineCount": num_rows,
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(last),
            "eventsTail": "[]",
        }


def _told(line: dict[str, Any]) -> str:
    """What a line says, without what the client adds of its own."""
    told = {k: v for k, v in line.items() if k in ("_step", "_timestamp") or not k.startswith("_")}
    return json.dumps(told, sort_keys=True)  # the client writes them in any order


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or every answer would wait 40 ms for the client's acknowledgement of its head

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it that
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # a client that was killed, or that has had enough of waiting
                self.close_connection = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            path = unquote(urlsplit(self.path).path)
            answer = server.answer(self.command, path, body, self.headers.get("Authorization", ""))
            if answer is None:
                self.close_connection = True
                return
            data = answer[1] if isinstance(answer[1], bytes) else json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if server.is_trickling(path):
                for i in range(len(data)):
                    time.sleep(0.02)
                    self.wfile.write(data[i : i + 1])
                return
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve  # the names that the base class looks for

    return Handler
