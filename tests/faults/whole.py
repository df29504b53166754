"""Whether what stands under a final name is whole, and equal to an undisturbed run's."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from edgeadapt.artifact import open_artifact
from edgeadapt.files import sha256_tree

TIMED = re.compile(r"bench-.*/measurement\.json|machine-.*/profile\.yaml|.*/stage\.json")
"""Files of stages that hold measured times."""
REPORTS = ("run.json", "report.md", "report.html")
INPUTS = ("base", "train.jsonl", "held.txt", "tiny.yaml")


def finals(root: Path) -> list[Path]:
    """Every file below a folder that stands under a final name, relative to it."""
    if not root.is_dir():
        return []
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(path for path in files if not any(part.startswith(".") for part in path.parts))


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of each file of a run that does not depend on how fast the machine is."""
    return {
        str(path): hashlib.sha256((root / path).read_bytes()).hexdigest()
        for path in finals(root)
        if not TIMED.fullmatch(str(path)) and str(path) not in REPORTS
    }


def inputs_hash(workplace: Path) -> str:
    """Of all that the user gave."""
    digest = hashlib.sha256()
    for name in INPUTS:
        path = workplace / name
        content = sha256_tree(path) if path.is_dir() else path.read_text()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def check_whole(root: Path, undisturbed: dict[str, str]) -> None:
    """See that nothing half-written stands under a final name of a run."""
    for path, digest in contents(root).items():
        assert undisturbed[path] == digest, f"{path} differs from an undisturbed run's"
    for folder in root.iterdir() if root.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            record = json.loads((folder / "stage.json").read_text())
            files = {str(p): (folder / p).stat().st_size for p in finals(folder)}
            assert record["files"] == {n: s for n, s in files.items() if n != "stage.json"}
            for path in finals(folder):
                _parse(folder / path)
    for path in finals(root):
        if path.suffix == ".gguf":
            open_artifact(root / path)
        elif path.name == "genai_config.json":
            open_artifact((root / path).parent)
    if (root / "run.json").exists():
        assert json.loads((root / "run.json").read_text())["stages"]
    if (root / "report.html").exists():
        assert (root / "report.html").read_text().rstrip().endswith("</html>")


def _parse(path: Path) -> Any:
    text = path.read_text() if path.suffix in (".json", ".yaml") else "{}"
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def check_cache(cache: Path, undisturbed: Path) -> None:
    """See that what is under a final name in a cache is what the undisturbed run has there."""
    for path in finals(cache):
        if path.parts[0] == "hashes":  # of times and inodes
            json.loads((cache / path).read_text())
        elif (undisturbed / path).exists():
            assert (cache / path).read_bytes() == (undisturbed / path).read_bytes(), path


def leftovers(*folders: Path) -> list[str]:
    """Temporary files and folders, which a finished run must not leave."""
    return [str(path) for folder in folders for path in folder.rglob(".*.partial")]
