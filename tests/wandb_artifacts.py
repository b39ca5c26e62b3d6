"""Artifacts that runs of the loopback server logged, as the real client asks for them to download one."""

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class LoggedFiles:
    """An artifact version that a run logged."""

    entity: str
    project: str
    run_id: str
    collection: str
    type: str
    files: dict[str, bytes]


class Artifacts:
    """The part of the server that hands artifacts out; `logged` in the order of their versions."""

    url: str

    def __init__(self) -> None:
        self.logged: list[LoggedFiles] = []
        self.num_downloads = 0

    def download(self, path: str) -> bytes | None:
        """The file at `/artifact/INDEX/NAME`, or the manifest at `/artifact/INDEX`."""
        index, _, name = path.removeprefix("/artifact/").partition("/")
        files = self.logged[int(index)].files
        if not name:
            return json.dumps(self._manifest(files)).encode()
        self.num_downloads += 1
        return files.get(name)

    def _manifest(self, files: dict[str, bytes]) -> dict[str, Any]:
        contents = {
            name: {"digest": base64.b64encode(hashlib.md5(data).digest()).decode(), "size": len(data)}
            for name, data in files.items()
        }
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return {"version": 1, **policy, "contents": contents}

    def _on_RunOutputArtifacts(self, given: dict[str, Any]) -> Any:  # noqa: N802
        nodes = [self._node(i) for i, logged in enumerate(self.logged) if logged.run_id == given["run"]]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        found = {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {"project": {"run": {"artifacts": found}}}

    def _on_FetchArtifactManifest(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/artifact/{given['id']}"}}}}

    def _on_GetArtifactMembershipFileUrls(self, given: dict[str, Any]) -> Any:  # noqa: N802
        index = next(
            i
            for i, logged in enumerate(self.logged)
            if logged.collection == given["collection"] and f"v{self._version(i)}" == given["alias"]
        )
        edges = [
            {"node": {"name": name, "directUrl": f"{self.url}/artifact/{index}/{name}"}, "cursor": name}
            for name in self.logged[index].files
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {
            "project": {
                "artifactCollection": {
                    "__typename": "ArtifactSequence",
                    "artifactMembership": {"files": {"pageInfo": page, "edges": edges}},
                }
            }
        }

    def _version(self, index: int) -> int:
        """Versions are counted in a collection of the project, whoever logs them."""
        logged = self.logged[index]
        return sum((o.project, o.collection) == (logged.project, logged.collection) for o in self.logged[:index])

    def _node(self, index: int) -> dict[str, Any]:
        logged = self.logged[index]
        entity = {"name": logged.entity}
        project = {"__typename": "Project", "id": "1", "internalId": "1", "name": logged.project, "entity": entity}
        digest = hashlib.md5(b"".join(logged.files.values())).hexdigest()
        return {
            "__typename": "Artifact",
            "id": str(index),
            "artifactSequence": {"__typename": "ArtifactSequence", "name": logged.collection, "project": project},
            "versionIndex": self._version(index),
            "artifactType": {"name": logged.type},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": sum(map(len, logged.files.values())),
            "digest": digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": None,
            "fileCount": len(logged.files),
            "createdAt": f"2026-01-01T00:00:{index:02}Z",
            "updatedAt": None,
            "aliases": [],
        }
