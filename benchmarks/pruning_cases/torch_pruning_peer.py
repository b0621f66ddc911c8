"""The peer's process: an order as JSON on standard input; a network pruned by Torch-Pruning, trained, and exported.

The network is read node by node from its ONNX file (convolutions with biases, ReLU, additions, pooling, one Gemm), so
that both sides start from the same weights.
"""

import json
import math
import sys

import numpy as np
import onnx
import torch
import torch_pruning
from onnx import numpy_helper
from torch.nn import functional


class Network(torch.nn.Module):
    """An ONNX graph of a residual network as PyTorch modules."""

    def __init__(self, path: str) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        weights = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        self.nodes, self.result = list(graph.node), graph.output[0].name
        self.layers = torch.nn.ModuleDict()
        for number, node in enumerate(self.nodes):
            settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Conv":
                kernel = weights[node.input[1]]
                layer = torch.nn.Conv2d(
                    kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), tuple(settings.get("strides", (1, 1))),
                    tuple(settings.get("pads", (0, 0))[:2]),
                )  # fmt: skip
            elif node.op_type == "Gemm":
                kernel = weights[node.input[1]]
                kernel = kernel if settings.get("transB") else kernel.T
                layer = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
            else:
                continue
            layer.weight.data, layer.bias.data = kernel.clone(), weights[node.input[2]].clone()
            self.layers[str(number)] = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {"x": x}
        for number, node in enumerate(self.nodes):
            given = [values[name] for name in node.input if name in values]
            values[node.output[0]] = self.step(number, node.op_type, given)
        return values[self.result]

    def step(self, number: int, op_type: str, given: list[torch.Tensor]) -> torch.Tensor:
        match op_type:
            case "Conv" | "Gemm":
                return self.layers[str(number)](given[0])
            case "Relu":
                return torch.relu(given[0])
            case "Add":
                return given[0] + given[1]
            case "MaxPool":
                return functional.max_pool2d(given[0], 2)
            case "GlobalAveragePool":
                return given[0].mean((2, 3), keepdim=True)
            case "Flatten":
                return torch.flatten(given[0], 1)
        raise ValueError(f"no module stands for {op_type}")


def main() -> None:
    order = json.load(sys.stdin)
    torch.manual_seed(0)
    network = Network(order["source"])
    with np.load(order["data"]) as held:
        x, labels = torch.tensor(held["x"]), torch.tensor(held["labels"])
    head = [layer for layer in network.layers.values() if isinstance(layer, torch.nn.Linear)]
    pruner = torch_pruning.pruner.BasePruner(
        network, x[:1], importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=order["ratio"], ignored_layers=head,
    )  # fmt: skip
    pruner.step()
    train(network, x, labels, order["training"])
    network.eval()
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(
        network, (x[:1],), order["target"], input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False
    )


def train(network: Network, x: torch.Tensor, labels: torch.Tensor, knobs: dict) -> None:
    """One-cycle AdamW with label smoothing and mirrored pictures, as the knobs of our own step say."""
    steps = len(x) // knobs["batch"]
    total = steps * knobs["epochs"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=knobs["lr"], weight_decay=knobs["weight_decay"])
    network.train()
    for number in range(total):
        if number % steps == 0:
            order = torch.randperm(len(x))
        chosen = order[number % steps * knobs["batch"] :][: knobs["batch"]]
        batch = x[chosen]
        mirrored = torch.rand(len(batch)) < 0.5
        batch[mirrored] = batch[mirrored].flip(3)
        optimizer.param_groups[0]["lr"] = knobs["lr"] * one_cycle(number / total)
        loss = functional.cross_entropy(
            network(batch), labels[chosen], label_smoothing=knobs["loss"]["label_smoothing"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def one_cycle(t: float, rise: float = 0.3) -> float:
    """From 1/25 up to 1 over the first 30%, down to 1/10,000, both by cosine."""
    start, end, at = (0.04, 1.0, t / rise) if t < rise else (1.0, 1e-4, (t - rise) / (1 - rise))
    return end + (start - end) * (1 + math.cos(math.pi * at)) / 2


if __name__ == "__main__":
    main()
