"""Talks to an Orthanc server by its REST API, with the standard library alone."""

import base64
import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Orthanc's own identifiers, and DICOM's.
IDENTIFIER = re.compile(r"[\da-f]{8}(-[\da-f]{8}){4}")
UID = re.compile(r"[\d.]+")
# Seconds to wait for an answer.
PATIENCE = 60.0


class OrthancError(RuntimeError):
    """The server cannot be used, or lacks what is asked for. One line says what was expected and what was found."""


class NotThere(OrthancError):
    """The server has no such resource."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of a study.

    id: Orthanc's identifier.
    uid: the SeriesInstanceUID.
    number, modality, description, manufacturer: as the headers have them. Any may be empty.
    instances: Orthanc's identifiers of its files.
    stable: whether nothing has arrived for a while. A series that is still being received is not.
    """

    id: str
    uid: str
    number: str
    modality: str
    description: str
    manufacturer: str
    instances: tuple[str, ...]
    stable: bool

    def __str__(self) -> str:
        named = " ".join(filter(None, (self.modality, self.number, self.description)))
        return f"{named} ({len(self.instances)} files, {self.uid})"


@dataclass(frozen=True)
class Orthanc:
    """A server.

    url: its address, such as http://localhost:8042.
    user: None for a server that asks for none.
    password: the user's.
    """

    url: str
    user: str | None = None
    password: str = field(default="", repr=False)

    def get(self, path: str) -> bytes:
        """The answer to GET. Raises OrthancError, NotThere where Orthanc has no such resource."""
        return self._ask(path, None)

    def get_json(self, path: str) -> Any:
        """The answer to GET, read as JSON. Raises what `get` raises."""
        return self._read_json(self.get(path))

    def post_json(self, path: str, content: bytes) -> Any:
        """The answer to POST, read as JSON. Raises what `get` raises."""
        return self._read_json(self._ask(path, content))

    def find_study(self, name: str) -> str:
        """Orthanc's identifier of a study.

        name: this identifier, or the StudyInstanceUID.
        Raises OrthancError where there is no such study.
        """
        if not (IDENTIFIER.fullmatch(name) or UID.fullmatch(name)):
            raise OrthancError(f"expected a StudyInstanceUID or Orthanc's identifier of a study, found {name!r}")
        if IDENTIFIER.fullmatch(name):
            with suppress(NotThere), self._understood(f"/studies/{name}"):
                return str(self.get_json(f"/studies/{name}")["ID"])
        matches = self.post_json("/tools/lookup", name.encode()) if UID.fullmatch(name) else []
        # More than one where several patients have studies of one UID.
        with self._understood("/tools/lookup"):
            found = [one["ID"] for one in matches if one["Type"] == "Study"]
        if len(found) == 1:
            return str(found[0])
        if found:
            raise OrthancError(f"{self.url}: expected one study {name}, found {', '.join(found)}")
        raise OrthancError(f"{self.url}: expected a study {name}, found none")

    def series_of(self, study: str) -> list[Series]:
        """The series of a study, by number and UID. study: Orthanc's identifier."""
        path = f"/studies/{study}/series"
        answer = self.get_json(path)
        with self._understood(path):
            found = [_series_from(one) for one in answer]
        return sorted(found, key=lambda series: (series.number.zfill(12), series.uid))

    def tags_of(self, instance: str) -> dict[str, Any]:
        """The header of a file, by keywords. instance: Orthanc's identifier."""
        tags: dict[str, Any] = self.get_json(f"/instances/{instance}/simplified-tags")
        return tags

    def download(self, series: Series, folder: Path) -> None:
        """Write a series' files into a folder, which is made."""
        folder.mkdir(parents=True)
        for number, instance in enumerate(series.instances):
            (folder / f"{number:05d}.dcm").write_bytes(self.get(f"/instances/{instance}/file"))

    def store(self, content: bytes) -> tuple[str, str]:
        """Store a DICOM file. Returns Orthanc's identifiers of the file and of its study."""
        stored = self.post_json("/instances", content)
        with self._understood("/instances"):
            instance = str(stored["ID"])
        study = self.get_json(f"/instances/{instance}/study")
        with self._understood(f"/instances/{instance}/study"):
            return instance, str(study["ID"])

    @contextmanager
    def _understood(self, path: str) -> Iterator[None]:
        """Reads parts of an answer. Raises OrthancError where it is not of the kind that Orthanc gives."""
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError):
            raise OrthancError(f"{self.url}: expected Orthanc's answer to {path}, found another") from None

    def _ask(self, path: str, content: bytes | None) -> bytes:
        try:
            request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", data=content)
            if self.user is not None:
                pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
                request.add_header("Authorization", f"Basic {pair}")
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from None
        except urllib.error.URLError as error:
            raise OrthancError(f"{self.url}: expected an Orthanc server, found: {_in_one_line(error.reason)}") from None
        # Of a bad address, and of what is no web server.
        except (ValueError, OSError, http.client.HTTPException) as error:
            raise OrthancError(f"{self.url}: expected an Orthanc server, found: {_in_one_line(error)}") from None

    def _refused(self, path: str, error: urllib.error.HTTPError) -> OrthancError:
        if error.code == 404:
            return NotThere(f"{self.url}: expected {path}, found nothing there")
        if error.code in (401, 403):
            who = "no user" if self.user is None else f"user {self.user} refused"
            return OrthancError(f"{self.url}: expected a user and a password that may use Orthanc, found {who}")
        return OrthancError(f"{self.url}: expected an answer to {path}, found status {error.code} {error.reason}")

    def _read_json(self, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError:
            found = body[:40].decode("ascii", "replace")
            raise OrthancError(f"{self.url}: expected an Orthanc server's JSON, found {found!r}") from None


def _series_from(answer: dict[str, Any]) -> Series:
    tags = answer["MainDicomTags"]
    return Series(
        id=answer["ID"],
        uid=tags["SeriesInstanceUID"],
        number=tags.get("SeriesNumber", ""),
        modality=tags.get("Modality", ""),
        description=tags.get("SeriesDescription", ""),
        manufacturer=tags.get("Manufacturer", ""),
        instances=tuple(answer["Instances"]),
        stable=answer["IsStable"],
    )


def _in_one_line(error: object) -> str:
    return " ".join(str(error).split()) or repr(error)
