"""Reports of the loopback server's projects, as W&B's report library asks for them (its reports/v2/gql.py)."""

import base64
import json
from typing import Any


class Views:
    """The part of the server that keeps reports: `views` by id, each with its spec as sent."""

    entity: str
    runs: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.views: dict[str, dict[str, Any]] = {}
        self.num_views_made = 0

    def spec(self, view_id: str) -> dict[str, Any]:
        """What a report says."""
        found: dict[str, Any] = json.loads(self.views[view_id]["spec"])
        return found

    def _on_upsertView(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """A view without id is a new one; one whose id nobody has is refused."""
        made = given["id"] is None
        if made:
            self.num_views_made += 1
            view_id = base64.b64encode(f"View:{self.num_views_made}".encode()).decode()
            project = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
            self.views[view_id] = {"id": view_id, "project": project, "createdAt": "2026-01-01T00:00:00Z"}
        view = self.views[given["id"] or view_id]
        view |= {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
        return {"upsertView": {"view": self._view(view), "inserted": made}}

    def _view(self, view: dict[str, Any]) -> dict[str, Any]:
        return view | {
            "updatedAt": "2026-01-01T00:00:00Z",
            "user": {"username": self.entity, "photoUrl": "", "email": ""},
        }

    def _on_SpecificReport(self, given: dict[str, Any]) -> Any:  # noqa: N802
        view = self.views.get(given["reportId"])
        return {"view": view and self._view(view)}

    def _on_ProjectViews(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """One page of a project's published reports, or no project where nobody has logged to it."""
        if not self._there(given["project"]):
            return {"project": None}
        there = [v for v in self.views.values() if v["project"]["name"] == given["project"] and v["type"] == "runs"]
        edges = [{"node": self._view(view), "cursor": str(i)} for i, view in enumerate(there)]
        return {"project": {"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}

    def _there(self, project: str) -> bool:
        return any(run.project == project for run in self.runs.values())

    def _on_GetProjects(self, _: dict[str, Any]) -> Any:  # noqa: N802
        names = dict.fromkeys(run.project for run in self.runs.values())
        nodes = [
            {"__typename": "Project", "id": name, "name": name, "entityName": self.entity, "isBenchmark": False}
            | {"createdAt": "2026-01-01T00:00:00", "user": None}
            for name in names
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}

    def _on_ProjectInternalId(self, given: dict[str, Any]) -> Any:  # noqa: N802
        there = self._there(given["projectName"])
        return {"project": {"id": "1", "internalId": "1"} if there else None}
