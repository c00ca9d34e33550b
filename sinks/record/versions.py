"""The commit of the checkout and the versions of packages, without importing them."""

import importlib.metadata
import subprocess
from pathlib import Path


def git(*arguments: str) -> str | None:
    """What a git command prints in the checkout that holds this file; None outside one, or if the command fails."""
    # With its locks, `git status` rewrites the index, and one that is killed leaves a lock that stops the next commit.
    command = ["git", "--no-optional-locks", *arguments]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_line(version: str) -> str:
    """What `sinks --version` prints.

    Args:
        version: of the suite.
    """
    commit = git("rev-parse", "--short=12", "HEAD")
    changed = " with changes" if commit and git("status", "--porcelain") else ""
    suite = f"sinks {version}" + (f" (commit {commit}{changed})" if commit else "")
    return ", ".join([suite, *(f"{name} {version_of(name) or 'missing'}" for name in ("torch", "lightning", "triton"))])
