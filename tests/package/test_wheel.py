"""The wheel and the sdist: what they hold, and that they work away from the checkout."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from environments import install, make_environment
from golden import DATA
from runs import CLIPS, ROOT

import videomae_jax

CHANGELOG = ROOT / "CHANGELOG.md"
SMOKE = Path(__file__).parent / "smoke.py"

LOAD = """
import sys
import videomae_jax as vm
from videomae_jax import config
print(vm.__file__, config.RECIPES, sep="\\n")
print(vm.load(sys.argv[1], num_heads=3, decoder_num_heads=2).config.task)
"""
RENDER = """
import sys
from readme_renderer import markdown
print(markdown.render(sys.stdin.read()))
"""
USE = (
    LOAD
    + """
import contextlib
from videomae_jax import cli
for command in ([], ["train"], ["data", "pack"]):
    with contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
cli.main(["train", "--plan", "--workdir=run", *sys.argv[2:]])
"""
)


def sources():
    """Every module and launch script, under the names that an installed package has."""
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "videomae_jax").rglob("*.py")}
    package |= {f"videomae_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    return package | {f"videomae_jax/launch/{p.name}" for p in (ROOT / "launch").iterdir()}


def test_the_wheel_holds_the_package_with_its_recipes_and_launchers_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions.wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    assert names == sources() | {"videomae_jax/py.typed"}


def test_the_sdist_holds_what_the_wheel_is_built_from(distributions):
    with tarfile.open(distributions.sdist) as file:
        names = {
            name.partition("/")[2] for name in file.getnames() if file.getmember(name).isfile()
        }
    package = {re.sub(r"^videomae_jax/(configs|launch)/", r"\1/", name) for name in sources()}
    package |= {"videomae_jax/py.typed"}
    about = {"LICENSE", "README.md", "MANIFEST.in", "PKG-INFO", "pyproject.toml", "setup.cfg"}
    about |= {"CHANGELOG.md"}
    assert {name for name in names if ".egg-info/" not in name} == package | about


def metadata(wheel):
    """Return the headers of a wheel's metadata and, as payload, its description."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(file.read(name))


def test_the_links_of_the_description_lead_into_the_repository(distributions, repository):
    place, revision = repository
    links = re.findall(r"(!?)\[[^\]]*\]\((.+?)\)", metadata(distributions.wheel).get_payload())
    assert all(link.startswith("https://") for _, link in links)
    inside = [(picture, link) for picture, link in links if link.startswith(place)]
    assert len(inside) >= 20 and any(picture for picture, _ in inside)
    for picture, link in inside:
        start = f"{place}/{'raw' if picture else 'blob'}/{revision}/"
        assert (ROOT / link.removeprefix(start).partition("#")[0]).exists(), link


def test_the_version_is_in_one_place_and_in_the_changelog(distributions):
    version = metadata(distributions.wheel)["Version"]
    assert version == videomae_jax.__version__
    heading = re.search(r"^## \[(.*?)\](?: - (\S+))?$", CHANGELOG.read_text(), re.MULTILINE)
    assert heading[1] == "Unreleased" or heading[1] == version and heading[2], heading[0]
    for name in ("CITATION.cff", "README.md", "pyproject.toml", "setup.cfg", "docs/conf.py"):
        file = ROOT / name
        found = re.findall(r"(?i)version *[:=] *.*", file.read_text() if file.exists() else "")
        assert not [line for line in found if version in line], f"{name}: {found}"


def test_the_wheel_works_in_a_folder_of_hostile_files(distributions, hostile, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(distributions.wheel) as file:
        file.extractall(installed)
    plan = [
        "--config=pretrain:tiny,custom",
        f"--config.data.train={CLIPS}/val.csv",
        *(f"--config.clip.{key}" for key in ("frames=4", "height=32", "width=32")),
        *(f"--config.model.{part}.depth=1" for part in ("encoder", "decoder")),
        "--config.batch_size=8",
        "--config.steps=10",
    ]
    done = subprocess.run(
        [sys.executable, "-c", USE, str(DATA / "pretrain_tiny.pth"), *plan],
        capture_output=True,
        text=True,
        cwd=hostile,
        # Before the checkout, which this environment has installed.
        env=os.environ | {"PYTHONPATH": str(installed)},
    )
    assert not done.returncode, done.stdout + done.stderr
    package, recipes, task, *said = done.stdout.splitlines()
    assert package == str(installed / "videomae_jax/__init__.py")
    assert recipes == str(installed / "videomae_jax/configs")
    assert task == "pretrain"
    assert sum(line.startswith("usage: videomae") for line in said) == 3
    assert re.search(r"[\d.]+ [MG]B", done.stdout), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_works_from_the_installed_wheel_and_the_sdist_loads(
    distributions, hostile, tmp_path
):
    python = make_environment(sys.executable, tmp_path / "venv")
    install(python, distributions.wheel, "twine", "readme_renderer[md]")
    subprocess.run([python, "-m", "twine", "check", "--strict", *distributions], check=True)
    # As the index shows it; twine only looks at it as such.
    page = subprocess.run(
        [python, "-c", RENDER],
        input=metadata(distributions.wheel).get_payload(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "<img" in page and page.count("<table>") >= 2 and "](" not in page

    def run(*command):
        alone = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
        done = subprocess.run(
            list(map(str, [python, *command])),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=hostile,
            env=alone,
        )
        assert not done.returncode, done.stdout[-5000:]
        return done.stdout

    assert f"{tmp_path}/venv/" in run(SMOKE, ROOT, tmp_path / "used").splitlines()[0]

    install(python, "--no-deps", "--force-reinstall", distributions.sdist)
    package, recipes, task = run("-c", LOAD, DATA / "pretrain_tiny.pth").splitlines()
    assert package.startswith(f"{tmp_path}/venv/") and recipes.startswith(f"{tmp_path}/venv/")
    assert task == "pretrain"
