"""What a repository on the Hugging Face Hub (or a mirror) holds, and its failures in sentences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from modules.errors import NotAllowed, NotFound, Unavailable, UserError
from modules.settings import proxies

_NAME = re.compile(r"^(?:[\w.-]+/)?[\w.-]+$")
_ADDRESS = re.compile(r"^https?://[^/]+/(?P<repository>[\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/(?P<branch>[^/?#]+))?/?$")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SHA1 = re.compile(r"[0-9a-fA-F]{40}")


@dataclass(frozen=True)
class RepositoryName:
    """ORG/NAME on the hub, and a branch, tag or commit of it."""

    repository: str
    branch: str = "main"

    @property
    def folder(self) -> str:
        """What it is called on disk: ORG_NAME, with _BRANCH unless that is main."""
        name = self.repository.replace("/", "_")
        return name if self.branch == "main" else f"{name}_{self.branch.replace('/', '_')}"

    @property
    def distinct_folder(self) -> str:
        """What it is called where another repository has taken `folder` (org_a/b and org/a_b): ORG--NAME, with @BRANCH.

        No two names give the same, as the hub allows neither -- nor @ in them.
        """
        name = self.repository.replace("/", "--")
        return name if self.branch == "main" and name != self.folder else f"{name}@{self.branch.replace('/', '@')}"

    def is_same(self, other: RepositoryName) -> bool:
        """Whether both mean one thing; the hub does not tell names apart by capitals."""
        return self.repository.casefold() == other.repository.casefold() and self.branch == other.branch

    def __str__(self) -> str:
        return self.repository if self.branch == "main" else f"{self.repository}:{self.branch}"


@dataclass(frozen=True)
class RepositoryFile:
    """One file on the hub. Large ones have a SHA-256, small ones the SHA-1 that git gives them.

    size: in bytes; None where the listing of a mirror does not say.
    """

    path: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def has_hash(self) -> bool:
        """Whether its content can be compared with the hub's."""
        return bool(self.sha256 or self.git_sha1)

    def is_same(self, other: RepositoryFile) -> bool:
        """Whether both are known to be the same content."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return bool(self.git_sha1) and self.git_sha1 == other.git_sha1


@dataclass(frozen=True)
class Repository:
    """A listing at one commit. address: of the hub or mirror that it came from."""

    name: RepositoryName
    commit: str
    files: tuple[RepositoryFile, ...]
    address: str

    @property
    def is_adapter(self) -> bool:
        """Whether it is a LoRA, which goes into loras/."""
        return any(file.path == "adapter_config.json" for file in self.files)


def parse_name(text: str, branch: str = "") -> RepositoryName:
    """From ORG/NAME, ORG/NAME:BRANCH or the address of its page. Raises UserError."""
    text = text.strip()
    if found := _ADDRESS.match(text):
        return RepositoryName(found["repository"], branch or found["branch"] or "main")
    name, _, own_branch = text.partition(":")
    repository = name.strip("/")
    if not _NAME.match(repository) or any(part.strip(".") == "" for part in repository.split("/")):
        raise UserError(f"{text!r} is not the name of a model. Write ORG/NAME, or ORG/NAME:BRANCH.", param="model")
    chosen = branch or own_branch or "main"
    if not re.match(r"^[\w.-]+(/[\w.-]+)*$", chosen) or ".." in chosen:
        raise UserError(f"{chosen!r} is not the name of a branch.", param="branch")
    return RepositoryName(repository, chosen)


def hub_address() -> str:
    """HF_ENDPOINT where it is set, else the hub itself."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def read_repository(name: RepositoryName) -> Repository:
    """Ask the hub what `name` holds. Raises NotFound, NotAllowed, Unavailable, UserError."""
    from huggingface_hub import HfApi

    address = hub_address()
    with sentences(name):
        info = HfApi(endpoint=address).model_info(name.repository, revision=name.branch, files_metadata=True, timeout=30)
        listed = [
            read_file(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in info.siblings or ()
        ]
    files = tuple({file.path: file for file in listed}.values())
    if not files:
        raise NotFound(f"{name.repository} is empty.", param="model")
    return Repository(name, info.sha if isinstance(info.sha, str) and info.sha else name.branch, files, address)


def read_file(path: object, size: object, sha256: object, git_sha1: object) -> RepositoryFile:
    """One entry of a listing, which is somebody else's text. Raises UserError for a path that would leave the folder."""
    return RepositoryFile(
        _safe_path(path),
        size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
        sha256.lower() if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
        git_sha1.lower() if isinstance(git_sha1, str) and _SHA1.fullmatch(git_sha1) else None,
    )


def completed(repository: Repository, file: RepositoryFile) -> RepositoryFile:
    """`file` with the size and hash that its own address names, where the listing lacks them and the hub says them there."""
    if file.size is not None and file.has_hash:
        return file
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    with sentences(repository.name):
        try:
            said = get_hf_file_metadata(file_address(repository, file.path), timeout=30, endpoint=repository.address)
        except HfHubHTTPError:
            return file  # not every mirror answers that; where the file itself is refused, the transfer says why
    # The tag of any other server may be the sum of anything.
    tag = said.etag if said.commit_hash == repository.commit else None
    told = read_file(file.path, said.size, tag, tag)
    if file.has_hash:
        return replace(file, size=told.size)
    return replace(told, size=told.size if file.size is None else file.size)


def file_address(repository: Repository, path: str) -> str:
    """Where a file at that commit is."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository.name.repository, path, revision=repository.commit, endpoint=repository.address)


@contextmanager
def sentences(name: RepositoryName, kind: str = "model") -> Iterator[None]:
    """Turn what goes wrong between us and the hub into a sentence that says what to do. kind: model, data set."""
    import httpx2
    from huggingface_hub import errors

    host = urlsplit(hub_address()).netloc
    try:
        yield
    except errors.GatedRepoError:
        raise gated(name, kind) from None
    except errors.RevisionNotFoundError:
        raise NotFound(f"{name.repository} has no branch {name.branch}.", param="branch") from None
    except errors.RepositoryNotFoundError:
        raise NotFound(
            f"There is no {kind} {name.repository} on {host}. If it is private, set HF_TOKEN to a token that may read it.",
            param="model" if kind == "model" else "dataset",
        ) from None
    except errors.EntryNotFoundError:
        raise NotFound(f"{name.repository} has changed while it was downloaded. Start the download again.") from None
    except errors.HFValidationError:
        raise UserError(f"{name.repository!r} is not the name of a {kind}. Write ORG/NAME.") from None
    except errors.OfflineModeIsEnabled:
        raise Unavailable("HF_HUB_OFFLINE is set, so nothing is downloaded. Unset it.") from None
    except errors.HfHubHTTPError as error:
        raise _refusal(name, error.response.status_code, host) from None
    except httpx2.TooManyRedirects:
        raise Unavailable(f"{host} sends one from address to address without an end. Check HF_ENDPOINT.") from None
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        raise Unavailable(
            f"{host} cannot be reached{proxies.through(hub_address())} ({type(error).__name__}). "
            "Check the network and proxy, or set HF_ENDPOINT to a mirror."
        ) from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        raise Unavailable(f"{host} does not answer like a Hugging Face Hub. Check HF_ENDPOINT.") from None


def gated(name: RepositoryName, kind: str = "model") -> NotAllowed:
    """What to do about a repository that wants its terms accepted."""
    page = name.repository if kind == "model" else f"datasets/{name.repository}"
    return NotAllowed(
        f"{name.repository} is gated: accept its terms on {hub_address()}/{page}, and set HF_TOKEN to a token of that account."
    )


def _refusal(name: RepositoryName, status: int, host: str) -> UserError:
    if status in (401, 403):
        return NotAllowed(
            f"{host} refuses access to {name.repository} ({status}). Check that HF_TOKEN is right and may read it."
        )
    if status == 404:
        return NotFound(f"There is no model {name.repository} on {host}.", param="model")
    if status == 429:
        return Unavailable(f"{host} asks to slow down (429). Wait some minutes, or set HF_TOKEN, and try again.")
    return Unavailable(f"{host} has a problem at the moment{proxies.through(hub_address())} ({status}). Try again later.")


def _safe_path(path: object) -> str:
    """A path from a listing must stay in the folder, and be written in one way only."""
    if isinstance(path, str):
        parts = PurePosixPath(path).parts
        told = bool(parts) and path.isprintable() and "\\" not in path
        if told and not path.startswith("/") and "/".join(parts) == path and ".." not in parts and ":" not in parts[0]:
            return path
    raise UserError(f"The listing has a file with the path {path!r}, which is not taken.")
