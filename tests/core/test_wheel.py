"""What would be released: its contents, and that it works where only it is installed."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[2]
FOLDERS = ("sources", "sinks", "handlers")
TREE = ("headrace", *FOLDERS, "pyproject.toml", "hatch_build.py", "LICENSE", "README.md")


def build(tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # The backend is one of the development tools: no isolation, no network.
    command = [sys.executable, "-m", "build", "--no-isolation", *options, str(tree)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold an sdist, and the wheel made from it: what a release does."""
    folder = tmp_path_factory.mktemp("dist")
    done = build(ROOT, "--outdir", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what a build reads, with its links."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in TREE:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.exists():
            shutil.copy(path, copy)
    return copy


def modules() -> set[str]:
    return {f"headrace/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def test_the_wheel_has_one_top_level_name_and_real_adapters(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        links = [info.filename for info in archive.infolist() if info.external_attr >> 28 == 0o12]
    assert {name.partition("/")[0] for name in names} == {"headrace", "headrace-0.1.0.dist-info"}
    assert names >= modules() | {"headrace/py.typed"}
    assert not links


def test_the_wheel_shows_the_readme(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert b"Description-Content-Type: text/markdown" in archive.read("headrace-0.1.0.dist-info/METADATA")


def test_the_sdist_builds_without_links(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    names = {member.name.partition("/")[2] for member in members}
    assert names >= modules() | {"LICENSE", "hatch_build.py", "pyproject.toml"}
    assert not names & set(FOLDERS)


def test_the_wheel_built_from_the_tree_is_the_same(wheel: Path, tree: Path, tmp_path: Path) -> None:
    done = build(tree, "--wheel", "--outdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (direct,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(direct).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, tmp_path / "env")
    script = """
import headrace, importlib.metadata as metadata
print(headrace.__version__, headrace.__file__)
for group in "sources", "sinks", "contracts":
    for entry in metadata.entry_points(group=f"headrace.{group}"):
        print(entry.name, entry.value.partition(":")[0], entry.load().__name__)
"""
    lines = run(python, "-I", "-c", script).splitlines()
    version, _, place = lines[0].partition(" ")
    assert version == "0.1.0"
    assert Path(place).is_relative_to(tmp_path / "env")
    assert sorted(lines[1:]) == sorted(declared())
    assert "0.1.0" in run(python.with_name("headrace"), "--version")


def declared() -> list[str]:
    """The adapters' entry points as pyproject.toml has them: name, module, class."""
    groups = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    adapters = {name: target for group in groups.values() for name, target in group.items()}
    assert len(adapters) == sum(map(len, groups.values()))
    return [" ".join((name, *target.split(":"))) for name, target in adapters.items()]


def install(wheel: Path, env: Path) -> Path:
    """Install the wheel into an environment of its own, over the libraries that are here already.

    A .pth file inside a folder that another .pth names is not read: the editable install of this
    repository stays out of sight.
    """
    run(Path(sys.executable), "-m", "venv", "--without-pip", str(env))
    python = env / "bin" / "python"
    pip = ("-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index")
    run(Path(sys.executable), *pip, str(wheel))
    (site,) = env.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(program: Path, *args: str) -> str:
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False, cwd=program.anchor)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_link_that_did_not_survive_stops_the_build(tree: Path, folder: str) -> None:
    # What git without links and zip archives leave: a text file with the link's target.
    link = tree / "headrace" / folder
    link.unlink()
    link.write_text(f"../{folder}")
    done = build(tree, "--wheel", "--outdir", str(tree / "dist"))
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"headrace/{folder} should link to the folder" in said
    assert "git config core.symlinks true" in said
    assert not list(tree.glob("dist/*.whl"))
