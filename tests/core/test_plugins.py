"""Entry points of real distributions, written into a folder of the path."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from headrace import plugins
from headrace.plugins import PluginError, Plugins
from headrace.settings import SourceSettings

SOURCE = "from headrace.settings import SourceSettings\n\nclass Acme(SourceSettings):\n    speed: int = 1\n"


class Site:
    """A folder of distributions, as `pip install --target` would leave it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def module(self, name: str, code: str) -> None:
        self.folder.joinpath(f"{name}.py").write_text(code)

    def distribution(self, name: str, points: str, metadata: str = "") -> None:
        info = self.folder / f"{name.replace('-', '_')}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{metadata}")
        (info / "entry_points.txt").write_text(points)

    def plugins(self) -> Plugins:
        found = distributions(path=[str(self.folder)])
        return Plugins(point for distribution in found for point in distribution.entry_points)

    def refusal(self, name: str = "acme") -> str:
        with pytest.raises(PluginError) as caught:
            self.plugins().find("headrace.sources", name)
        assert caught.value.__cause__ is None
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("acme")]:
        monkeypatch.delitem(sys.modules, name)
    return Site(tmp_path)


def test_an_adapter_of_another_distribution_is_found(site: Site) -> None:
    site.module("acme_one", SOURCE)
    site.distribution("acme", "[headrace.sources]\nacme = acme_one:Acme\n[headrace.sinks]\nother = acme_one:Acme\n")
    assert site.plugins().names("headrace.sources") == ["acme"]
    assert site.plugins().names("headrace.contracts") == []
    found = site.plugins().find("headrace.sources", "acme")
    assert issubclass(found, SourceSettings)
    assert found.__module__ == "acme_one"


def test_only_the_one_asked_for_is_imported(site: Site) -> None:
    site.module("acme_wanted", SOURCE)
    site.module("acme_unwanted", "raise SystemExit")
    site.distribution("acme", "[headrace.sources]\na = acme_wanted:Acme\nb = acme_unwanted:Acme\n")
    assert site.plugins().names("headrace.sources") == ["a", "b"]
    assert "acme_wanted" not in sys.modules
    site.plugins().find("headrace.sources", "a")
    assert "acme_unwanted" not in sys.modules


def test_an_unknown_name(site: Site) -> None:
    assert site.refusal() == 'unknown source type "acme"; installed: nothing'
    site.distribution("acme", "[headrace.sources]\nfilesystem = a:A\nclock = a:B\n")
    assert site.refusal("filesytem") == 'unknown source type "filesytem"; did you mean "filesystem"?'
    assert site.refusal("zzz") == 'unknown source type "zzz"; installed: clock and filesystem'


def test_a_name_that_two_distributions_offer(site: Site) -> None:
    site.distribution("acme-b", "[headrace.sources]\nacme = a:A\n")
    site.distribution("acme-a", "[headrace.sources]\nacme = a:A\n")
    assert site.refusal() == 'source type "acme" is offered by acme-a and acme-b; uninstall one of them'


EXTRAS = "Provides-Extra: acme\nProvides-Extra: fast\nRequires-Dist: Acme.Driver>=1 ; extra == 'fast'\n"


@pytest.mark.parametrize(
    ("point", "metadata", "code", "message"),
    [
        (
            "acme = acme_x:A",
            EXTRAS,
            "import acme_driver",
            "needs more than is installed; run: pip install 'dist[acme]'",
        ),
        (
            "acme = acme_x:A [fast]",
            "",
            "import acme_driver",
            "needs more than is installed; run: pip install 'dist[fast]'",
        ),
        (
            "acme = acme_x:A",
            EXTRAS.replace("Provides-Extra: acme\n", ""),
            "import acme_driver.sub",
            "needs more than is installed; run: pip install 'dist[fast]'",
        ),
        ("acme = acme_x:A", "", "import acme_driver", 'needs the Python module "acme_driver", which is not installed'),
        ("acme = acme_absent:A", EXTRAS, "", 'is not installed completely: no module "acme_absent"'),
        (
            "acme = acme_x:A",
            EXTRAS,
            "raise ImportError('no libpq')",
            "cannot be loaded: no libpq; run: pip install 'dist[acme]'",
        ),
        ("acme = acme_x:A", "", "1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        (
            "acme = acme_x:A",
            "",
            "",
            "cannot be loaded: AttributeError: module 'acme_x' has no attribute 'A'",
        ),
        (
            "acme = acme_x:A",
            "",
            "A = 1",
            'is unusable: "acme_x:A" is no class derived from headrace.settings.SourceSettings; tell its author',
        ),
        (
            "acme = acme_x:A",
            "",
            "from headrace.settings import SinkSettings as A",
            'is unusable: "acme_x:A" is no class derived from headrace.settings.SourceSettings; tell its author',
        ),
    ],
)
def test_an_adapter_that_cannot_be_used(site: Site, point: str, metadata: str, code: str, message: str) -> None:
    site.module("acme_x", code)
    site.distribution("dist", f"[headrace.sources]\n{point}\n", metadata)
    assert site.refusal() == f'source type "acme" of dist {message}'


def test_what_is_installed_is_read_by_default() -> None:
    assert plugins.names("headrace.sources") == Plugins().names("headrace.sources")
    with pytest.raises(PluginError, match='unknown sink type "no-such-sink"'):
        plugins.find("headrace.sinks", "no-such-sink")
