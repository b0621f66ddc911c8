"""Pruning, measured: structure and proof on every architecture, accuracy and speed, scorers, recovery, and peers.

    python benchmarks/bench_pruning.py [--quick] [--json FILE] [--only PART,PART] [--models ID,ID] [--epochs N]
                                       [--records FOLDER] [--seconds N] [--seeds N,N]

    structure     every architecture at hand loses 30% of its channels at random and stays the same function
    channels      networks on Fashion-MNIST: half of the channels, nine tenths of the parameters, and INT8 on top
    scorers       every installed scorer on one task with one budget, three seeds
    transformers  a quarter of heads and feed-forward without labels, with recovery and without
    photographs   EfficientNet-Lite0 without a fifth of its multiply-accumulates, without labels
    zeros         single weights made zero: fidelity, bytes, and time where zeros are skipped
    peers         Torch-Pruning with the same network, ratio and training

What the columns mean is told by the module of each part in `pruning_cases/`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning_cases import label_free, peers, pictures, scorers, structure, zeros
from tables import write_json


def parts(arguments: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each part runs."""
    quick, names = arguments.quick, set(arguments.models.split(",")) - {""}
    return {
        "structure": lambda: structure.run(names, quick=quick),
        "channels": lambda: pictures.channels(
            names,
            quick=quick,
            epochs=arguments.epochs,
            limit=arguments.pictures,
            records=arguments.records,
            seconds=arguments.seconds,
        ),
        "scorers": lambda: scorers.run(
            quick=quick,
            limit=arguments.pictures,
            seeds=[int(seed) for seed in arguments.seeds.split(",")],
            records=arguments.records,
            seconds=arguments.seconds,
        ),
        "transformers": lambda: label_free.transformers(names, quick=quick),
        "photographs": lambda: label_free.photographs(quick=quick),
        "zeros": lambda: zeros.run(quick=quick),
        "peers": lambda: peers.run(quick=quick, epochs=arguments.epochs, limit=arguments.pictures),
    }


def main() -> int:
    """Print the tables; 1 if the proof of any model failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases, a minute or two")
    parser.add_argument("--only", default="", help="parts, separated by commas")
    parser.add_argument(
        "--models", default="", help="of `structure`, `transformers`: ids; of `channels`: parts of names"
    )
    parser.add_argument("--epochs", type=int, default=6, help="of training after pruning")
    parser.add_argument("--pictures", type=int, default=None, help="to train on; all if not given")
    parser.add_argument("--seeds", default="0,1,2", help="of `scorers`: separated by commas")
    parser.add_argument("--records", type=Path, help="of `channels`, `scorers`: folder of what runs leave behind")
    parser.add_argument("--seconds", type=float, help="of `channels`, `scorers`: stop what is not done by then")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    known = parts(arguments)
    record: dict[str, Any] = {"cases": []}
    for name in arguments.only.split(",") if arguments.only else known:
        print(f"\n### {name}\n", flush=True)
        found = known[name]()
        record["cases"] += [{"part": name, **one} for one in found.pop("cases")]
        record |= found
        if arguments.json:  # after every part, so that hours of work are never lost
            write_json(arguments.json, record)
    return int(bool(record.get("failures")))


if __name__ == "__main__":
    raise SystemExit(main())
