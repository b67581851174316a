"""Refuse to build without the adapters: such a wheel would import, then find nothing (ADR 1)."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REMEDY = """\
headrace: {names} should link to the folder of the same name at the top, and does not.
Links get lost in zip archives, and on systems that have none (Windows). Either
  - clone with git:              git clone -c core.symlinks=true URL
  - or repair this checkout:     git config core.symlinks true && git checkout -- headrace
  - or make them without git:    (cd headrace && ln -sfn ../sources ../sinks ../handlers .)
  - or build from the sdist, which has real folders."""


class LinksSurvived(BuildHookInterface[Any]):
    """Runs before every build: sdist, wheel and editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        links = ("headrace/sources", "headrace/sinks", "headrace/handlers")
        lost = [link for link in links if not Path(self.root, link, "__init__.py").is_file()]
        if lost:
            sys.exit(REMEDY.format(names=", ".join(lost)))
