"""Refuse to build without the adapters: a wheel with dead links would import and then find nothing (ADR 1)."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REMEDY = """\
headrace: {names} should be a link to the folder of the same name at the top of the repository, and is not.
The links are lost when a zip archive is unpacked without them or where the system has none (Windows). Either
  - clone with git:                      git clone -c core.symlinks=true URL
  - or repair this checkout:             git config core.symlinks true && git checkout -- headrace
  - or, without git, on Linux or macOS:  for n in sources sinks handlers; do ln -sfn ../$n headrace/$n; done
  - or build from the sdist, which has real folders."""


class LinksSurvived(BuildHookInterface[Any]):
    """Runs before every build: sdist, wheel and editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        package = Path(self.root, "headrace")
        lost = [n for n in ("sources", "sinks", "handlers") if not (package / n / "__init__.py").is_file()]
        if lost:
            sys.exit(REMEDY.format(names=", ".join(f"headrace/{n}" for n in lost)))
