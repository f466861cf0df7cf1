"""`manifest.json` of a package: the SHA-256 of every file as weft wrote it; what differs from it was edited since."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from weft import outputs
from weft.errors import UsageError

MANIFEST = "manifest.json"
SCHEMA = "weft.manifest/1"


def digest(text: str | bytes) -> str:
    """SHA-256 of a file's contents, or of a path, which may be no text; in hex."""
    return hashlib.sha256(text.encode(errors="surrogateescape") if isinstance(text, str) else text).hexdigest()


def manifest(files: Mapping[str, str]) -> str:
    """The manifest of `files` (path below the package -> text) as JSON text."""
    return as_json({"schema": SCHEMA, "files": {name: digest(files[name]) for name in sorted(files)}})


def as_json(value: object) -> str:
    """JSON with sorted keys and a newline at the end: equal values give equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def written(out: Path) -> dict[str, str]:
    """The hashes that `out` was written with, {} where there is no package. UsageError: a broken manifest."""
    path = out / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {str(k): str(v) for k, v in data["files"].items()}
        if data["schema"] != SCHEMA or any(
            PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in found
        ):
            raise ValueError("another schema, or files elsewhere")
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UsageError(f"{path} is not a manifest that weft wrote; --force replaces the package") from error


def edited(out: Path) -> list[str]:
    """Files of the package at `out` that no longer hold what weft wrote (deleted ones do not count)."""
    return [n for n, was in written(out).items() if (out / n).is_file() and digest_of(out / n) != was]


def digest_of(path: Path) -> str:
    """`digest` of a file; UsageError where it cannot be read."""
    with outputs.refusing(path):
        return digest(path.read_bytes())


def written_or_nothing(out: Path) -> dict[str, str]:
    """`written`, taking a broken manifest for none."""
    try:
        return written(out)
    except UsageError:
        return {}


def changed(out: Path) -> list[str]:
    """The files of a package that are gone or edited; the manifest alone where that says nothing."""
    before = written_or_nothing(out)
    gone = [name for name in before if not (out / name).is_file()]
    return [*gone, *edited(out)] if before else [MANIFEST]
