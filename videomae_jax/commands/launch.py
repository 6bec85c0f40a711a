"""Write the scripts that launch a run on Slurm, TPU VMs, Kubernetes or one machine into a folder.

README.md in the folder has one command for each of them. The Dockerfile builds an image from a
checkout of this project.

examples:
  videomae launch launch/
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("folder", metavar="DIR", help="a new folder to write to")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    import shutil
    from pathlib import Path

    from videomae_jax.config import in_package
    from videomae_jax.errors import UserError
    from videomae_jax.paths import writing

    folder = Path(args.folder).expanduser()
    if folder.exists():
        raise UserError(f"{folder} exists: give a new folder")
    with writing(folder):
        shutil.copytree(in_package("launch"), folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in sorted(folder.iterdir()):
        print(path)
