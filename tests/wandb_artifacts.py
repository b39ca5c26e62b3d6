"""Artifacts that runs of the loopback server logged, as the real client uploads and downloads them.

The steps of an upload are those of the client's engine (core/internal/artifacts/saver.go): CreateArtifact, a manifest,
the files, the manifest with what became of them, CommitArtifact. Contents that a version of the collection has already
make no new one: the server answers that one, and the aliases move to it (wandb's pull requests 3109 and 11340).
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)  # one is told from another by what it is, not by what it holds
class LoggedFiles:
    """An artifact version that a run logged; `digest` and `manifest` are those of its client, if one sent them."""

    entity: str
    project: str
    run_id: str
    collection: str
    type: str
    files: dict[str, bytes]
    digest: str | None = None
    manifest: bytes | None = None
    aliases: list[str] = field(default_factory=list)
    is_committed: bool = True


class Artifacts:
    """The part of the server that takes artifacts and hands them out; `logged` in the order of their versions.

    Those that were never committed stay in `logged` too, and are shown to nobody.
    """

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[LoggedFiles] = []
        self.num_downloads = 0
        self.num_uploads = 0

    def versions(self, collection: str) -> list[LoggedFiles]:
        """The versions of a collection that were committed."""
        return [logged for logged in self.logged if logged.collection == collection and logged.is_committed]

    # --- uploads ----------------------------------------------------------------------------------------------------

    def _on_ArtifactType(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """The type of the artifact of that name, so that the client can refuse another one."""
        collection = given["name"].partition(":")[0]
        types = [one.type for one in self.versions(collection) if one.project == given["project"]]
        return {"project": {"artifact": {"artifactType": {"name": types[-1]}} if types else None}}

    def _on_CreateArtifact(self, given: dict[str, Any]) -> Any:  # noqa: N802
        asked = given["input"]
        collection = asked["artifactCollectionName"]
        aliases = [alias["alias"] for alias in asked.get("aliases") or []]
        found = next((one for one in self.versions(collection) if self._digest(one) == asked["digest"]), None)
        if found is None:
            found = LoggedFiles(
                entity=asked["entityName"],
                project=asked["projectName"],
                run_id=asked["runName"],
                collection=collection,
                type=asked["artifactTypeName"],
                files={},
                digest=asked["digest"],
                aliases=aliases,
                is_committed=False,
            )
            self.logged.append(found)
        else:
            self._move_aliases(found, aliases)
        state = "COMMITTED" if found.is_committed else "PENDING"
        versions = self.versions(collection)
        latest = {"id": str(self.logged.index(versions[-1]))} if versions else None
        artifact = {"id": str(self.logged.index(found)), "state": state, "artifactSequence": {"latestArtifact": latest}}
        return {"createArtifact": {"artifact": artifact}}

    def _move_aliases(self, to: LoggedFiles, aliases: list[str]) -> None:
        """An alias is of one version of a collection."""
        for one in self.versions(to.collection):
            one.aliases = [alias for alias in one.aliases if alias not in aliases]
        to.aliases = sorted({*to.aliases, *aliases})

    def _on_CreateArtifactManifest(self, given: dict[str, Any]) -> Any:  # noqa: N802
        file = {"id": "file", "uploadUrl": f"{self.url}/artifact/{given['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    def _on_CreateArtifactFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        edges = []
        for spec in given["input"]["artifactFiles"]:
            url = f"{self.url}/artifact/{spec['artifactID']}/{spec['name']}"
            node = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": node | {"artifact": {"id": spec["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def receive(self, path: str, body: bytes) -> tuple[int, Any]:
        """Keeps the file at `/artifact/INDEX/NAME`, or the manifest at `/artifact/INDEX`."""
        index, _, name = path.removeprefix("/artifact/").partition("/")
        if name:
            self.logged[int(index)].files[name] = body
            self.num_uploads += 1
        else:
            self.logged[int(index)].manifest = body
        return 200, {}

    def _on_CommitArtifact(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """Commits a version whose files are those of its manifest; the real server checks them as well."""
        logged = self.logged[int(given["artifactID"])]
        assert logged.manifest is not None, "a manifest comes before the commit"
        contents = json.loads(logged.manifest)["contents"]
        assert {name: entry["digest"] for name, entry in contents.items()} == {
            name: _md5(data) for name, data in logged.files.items()
        }
        logged.is_committed = True
        self._move_aliases(logged, logged.aliases)
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": logged.digest}}}

    def _on_ArtifactByID(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"artifact": self._node(int(given["id"]))}

    def _on_ProjectArtifacts(self, given: dict[str, Any]) -> Any:  # noqa: N802
        there = [one for one in self.versions(given["collection"]) if one.type == given["type"]]
        edges = [{"version": f"v{i}", "node": self._node(self.logged.index(one))} for i, one in enumerate(there)]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        artifacts = {"totalCount": len(edges), "pageInfo": page, "edges": edges[::-1]}
        collection = {"__typename": "ArtifactSequence", "artifacts": artifacts} if there else None
        return {"project": {"artifactType": {"artifactCollection": collection} if there else None}}

    def _digest(self, logged: LoggedFiles) -> str:
        return logged.digest or hashlib.md5(b"".join(logged.files.values())).hexdigest()

    # --- downloads --------------------------------------------------------------------------------------------------

    def download(self, path: str) -> bytes | None:
        """The file at `/artifact/INDEX/NAME`, or the manifest at `/artifact/INDEX`."""
        index, _, name = path.removeprefix("/artifact/").partition("/")
        files = self.logged[int(index)].files
        if not name:
            return self.logged[int(index)].manifest or json.dumps(self._manifest(files)).encode()
        self.num_downloads += 1
        return files.get(name)

    def _manifest(self, files: dict[str, bytes]) -> dict[str, Any]:
        contents = {name: {"digest": _md5(data), "size": len(data)} for name, data in files.items()}
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return {"version": 1, **policy, "contents": contents}

    def _on_RunOutputArtifacts(self, given: dict[str, Any]) -> Any:  # noqa: N802
        there = [logged for logged in self.logged if logged.run_id == given["run"] and logged.is_committed]
        nodes = [self._node(self.logged.index(logged)) for logged in there]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        found = {"totalCount": len(nodes), "pageInfo": page, "edges": [{"node": node} for node in nodes]}
        return {"project": {"run": {"artifacts": found}}}

    def _on_FetchArtifactManifest(self, given: dict[str, Any]) -> Any:  # noqa: N802
        return {"artifact": {"currentManifest": {"file": {"directUrl": f"{self.url}/artifact/{given['id']}"}}}}

    def _on_GetArtifactMembershipFileUrls(self, given: dict[str, Any]) -> Any:  # noqa: N802
        index = self._index(given)
        return self._files(
            index,
            {
                name: {"name": name, "directUrl": f"{self.url}/artifact/{index}/{name}"}
                for name in self.logged[index].files
            },
        )

    def _on_ArtifactMembershipFiles(self, given: dict[str, Any]) -> Any:  # noqa: N802
        """What `Artifact.files` asks for, of wandb 0.31: fragment FileFragment; a signed address in `directUrl`."""
        index = self._index(given)
        files = {
            name: {
                "__typename": "File",
                "id": f"{index}/{name}",
                "name": name,
                "url": None,
                "sizeBytes": str(len(data)),
                "storagePath": None,
                "mimetype": None,
                "updatedAt": None,
                "digest": base64.b64encode(hashlib.md5(data).digest()).decode(),
                "md5": None,
                "directUrl": f"{self.url}/artifact/{index}/{name}?signature=secret",
            }
            for name, data in self.logged[index].files.items()
        }
        return self._files(index, files)

    def _index(self, given: dict[str, Any]) -> int:
        """The version that a collection and an alias mean."""
        return next(
            i
            for i, logged in enumerate(self.logged)
            if logged.collection == given["collection"] and f"v{self._version(i)}" == given["alias"]
        )

    def _files(self, index: int, nodes: dict[str, Any]) -> dict[str, Any]:
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edges = [{"node": node, "cursor": name} for name, node in nodes.items()]
        files = {"totalCount": len(edges), "pageInfo": page, "edges": edges}
        membership = {"__typename": "ArtifactCollectionMembership", "files": files}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": membership}
        return {"project": {"artifactCollection": collection}}

    def _version(self, index: int) -> int:
        """Versions are counted in a collection of the project, whoever logs them."""
        logged = self.logged[index]
        before = [other for other in self.logged[:index] if other.is_committed]
        return sum((o.project, o.collection) == (logged.project, logged.collection) for o in before)

    def _node(self, index: int) -> dict[str, Any]:
        logged = self.logged[index]
        entity = {"name": logged.entity}
        project = {"__typename": "Project", "id": "1", "internalId": "1", "name": logged.project, "entity": entity}
        collection = {"__typename": "ArtifactSequence", "name": logged.collection, "project": project}
        aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in logged.aliases]
        return {
            "__typename": "Artifact",
            "id": str(index),
            "artifactSequence": collection,
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
            "digest": self._digest(logged),
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": None,
            "fileCount": len(logged.files),
            "createdAt": f"2026-01-01T00:00:{index:02}Z",
            "updatedAt": None,
            "aliases": [alias | {"artifactCollection": collection} for alias in aliases],
        }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()
