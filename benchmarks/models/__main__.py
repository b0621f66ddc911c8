"""The benchmark models on the command line.

python -m models list               every case: its summary and the packages it comes from
python -m models fetch [ID ...]     fetch and convert these models (all of them) and their data
python -m models data ID DIR        write DIR/ID.onnx and DIR/calibration/0000.npz, ..., arrays named by model input
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

from .catalogue import CASES, case
from .store import StoreError, package_folder


def main() -> int:
    """Run one command; 1 and one sentence on standard error where something cannot be had."""
    arguments = _parser().parse_args()
    try:
        arguments.command(arguments)
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models", description="Real trained models with labelled data.")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("list", help="show every case").set_defaults(command=_list)
    fetch = commands.add_parser("fetch", help="fetch and convert models and their data")
    fetch.add_argument("ids", nargs="*", metavar="ID", help="cases; all of them if none is given")
    fetch.set_defaults(command=_fetch)
    data = commands.add_parser("data", help="write a model and its calibration feeds into a folder")
    data.add_argument("id", metavar="ID", help="the case")
    data.add_argument("folder", metavar="DIR", type=Path, help="the folder; made if it is not there")
    data.set_defaults(command=_data)
    return parser


def _list(arguments: argparse.Namespace) -> None:
    width = max(map(len, CASES))
    for found in CASES.values():
        source = ", ".join(found.packages) or "nothing to fetch"
        print(f"{found.id:{width}}  {found.summary}\n{'':{width}}  from {source}")


def _fetch(arguments: argparse.Namespace) -> None:
    for found in [case(name) for name in arguments.ids or CASES]:
        for package in found.packages:
            package_folder(package)
        print(f"{found.id}  {found.path.stat().st_size / 1e6:.2f} MB  {found.path}")


def _data(arguments: argparse.Namespace) -> None:
    found = case(arguments.id)
    calibration = arguments.folder / "calibration"
    calibration.mkdir(parents=True, exist_ok=True)
    for stale in calibration.glob("[0-9][0-9][0-9][0-9].npz"):
        stale.unlink()
    model = arguments.folder / f"{found.id}.onnx"
    shutil.copyfile(found.path, model)
    feeds = found.calibration()
    for number, feed in enumerate(feeds):
        np.savez(calibration / f"{number:04}.npz", **feed)
    print(f"{model}\n{calibration}  {len(feeds)} feeds")


if __name__ == "__main__":
    sys.exit(main())
