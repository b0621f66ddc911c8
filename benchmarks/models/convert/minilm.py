"""all-MiniLM-L6-v2: a BERT encoder of 6 layers, mean pooling and L2 normalisation.

input_ids, attention_mask (N, S) int64 -> last_hidden_state (N, S, 384), sentence_embedding (N, 384). Padding is masked
by adding -10000 before the softmax, and GELU is written out with Erf, as exporters of PyTorch's BERT do.
"""

from pathlib import Path

import numpy as np

from .graph import FLOAT, INT64, GraphBuilder

LAYERS, WIDTH, HEADS = 6, 384, 12
EPSILON = 1e-12
MASKED = -10000.0


def convert(source: Path, target: Path) -> None:
    """Read the .safetensors file `source`, write ONNX to `target`."""
    from safetensors.numpy import load_file

    network = _Encoder(load_file(source))
    network.build()
    tokens = (INT64, ["N", "S"])
    outputs = {"last_hidden_state": (FLOAT, ["N", "S", WIDTH]), "sentence_embedding": (FLOAT, ["N", WIDTH])}
    network.graph.save(target, {"input_ids": tokens, "attention_mask": tokens}, outputs)


class _Encoder:
    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = state
        self.graph = GraphBuilder("minilm")

    def build(self) -> None:
        mask = self.op("Cast", ["attention_mask"], "mask/cast", to=FLOAT)
        hidden = self.embeddings()
        bias = self.attention_bias(mask)
        for layer in range(LAYERS):
            hidden = self.layer(hidden, bias, f"encoder.layer.{layer}.")
        hidden = self.graph.node("Identity", [hidden], "last", output="last_hidden_state")
        self.pool(hidden, mask)

    def embeddings(self) -> str:
        words = self.graph.constant("word_embeddings", self.state["embeddings.word_embeddings.weight"])
        positions = self.graph.constant("position_embeddings", self.state["embeddings.position_embeddings.weight"])
        segment = self.graph.constant("tok0", self.state["embeddings.token_type_embeddings.weight"][0])
        length = self.op("Shape", ["input_ids"], "shape", start=1, end=2)
        position = self.op("Slice", [positions, self.axes("z1", 0), length, self.axes("ax0", 0)], "emb/pos")
        word = self.op("Gather", [words, "input_ids"], "emb/word")
        total = self.op("Add", [self.op("Add", [word, segment], "emb/add_type"), position], "emb/add_pos")
        return self.layer_norm(total, "embeddings.LayerNorm")

    def attention_bias(self, mask: str) -> str:
        """(N, 1, 1, S): 0 at tokens, -10000 at padding."""
        spread = self.op("Unsqueeze", [mask, self.axes("ax12", 1, 2)], "mask/unsq")
        padding = self.op("Sub", [self.scalar("one", 1), spread], "mask/inv")
        return self.op("Mul", [padding, self.scalar("neg", MASKED)], "mask/bias")

    def layer(self, hidden: str, bias: str, name: str) -> str:
        attended = self.op("Add", [self.attention(hidden, bias, name), hidden], f"{name}attn_res")
        hidden = self.layer_norm(attended, f"{name}attention.output.LayerNorm")
        inner = self.gelu(self.linear(hidden, f"{name}intermediate.dense"), name)
        fed_forward = self.op("Add", [self.linear(inner, f"{name}output.dense"), hidden], f"{name}ffn_res")
        return self.layer_norm(fed_forward, f"{name}output.LayerNorm")

    def attention(self, hidden: str, bias: str, name: str) -> str:
        query = self.heads(hidden, name, "query", [0, 2, 1, 3])
        key = self.heads(hidden, name, "key", [0, 2, 3, 1])
        value = self.heads(hidden, name, "value", [0, 2, 1, 3])
        scores = self.op("MatMul", [query, key], f"{name}qk")
        scaled = self.op("Div", [scores, self.scalar("sqrt_d", np.sqrt(WIDTH // HEADS))], f"{name}scale")
        masked = self.op("Add", [scaled, bias], f"{name}masked")
        weights = self.op("Softmax", [masked], f"{name}softmax", axis=-1)
        context = self.op("MatMul", [weights, value], f"{name}av")
        context = self.op("Transpose", [context], f"{name}ctx/transpose", perm=[0, 2, 1, 3])
        merged = self.op("Reshape", [context, self.axes("merge_shape", 0, 0, WIDTH)], f"{name}ctx/reshape")
        return self.linear(merged, f"{name}attention.output.dense")

    def heads(self, hidden: str, name: str, kind: str, order: list[int]) -> str:
        """Project and split into heads: (N, heads, S, width) for `query` and `value`, transposed for `key`."""
        projected = self.linear(hidden, f"{name}attention.self.{kind}")
        shape = self.axes("heads_shape", 0, 0, HEADS, WIDTH // HEADS)
        split = self.op("Reshape", [projected, shape], f"{name}{kind[0]}/reshape")
        return self.op("Transpose", [split], f"{name}{kind[0]}/transpose", perm=order)

    def gelu(self, value: str, name: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2"""
        scaled = self.op("Div", [value, self.scalar("sqrt2", np.sqrt(2))], f"{name}gelu/div")
        raised = self.op("Add", [self.op("Erf", [scaled], f"{name}gelu/erf"), "one"], f"{name}gelu/add")
        product = self.op("Mul", [value, raised], f"{name}gelu/mul")
        return self.op("Mul", [product, self.scalar("half", 0.5)], f"{name}gelu/half")

    def pool(self, hidden: str, mask: str) -> None:
        """The mean over tokens, of unit length."""
        weights = self.op("Unsqueeze", [mask, self.axes("ax2", 2)], "pool/mask")
        axis = self.axes("ax1", 1)
        total = self.op("ReduceSum", [self.op("Mul", [hidden, weights], "pool/mul"), axis], "pool/sum", keepdims=0)
        tokens = self.op("ReduceSum", [weights, axis], "pool/cnt", keepdims=0)
        tokens = self.op("Clip", [tokens, self.scalar("tiny", 1e-9)], "pool/clip")
        mean = self.op("Div", [total, tokens], "pool/mean")
        length = self.op("ReduceL2", [mean], "pool/norm", axes=[1], keepdims=1)
        self.graph.node("Div", [mean, length], "pool/l2", output="sentence_embedding")

    def linear(self, value: str, name: str) -> str:
        weight = self.graph.constant(f"{name}.weight_T", self.state[f"{name}.weight"].T)
        bias = self.graph.constant(f"{name}.bias", self.state[f"{name}.bias"])
        return self.op("Add", [self.op("MatMul", [value, weight], f"{name}/MatMul"), bias], f"{name}/Add")

    def layer_norm(self, value: str, name: str) -> str:
        weight = self.graph.constant(f"{name}.weight", self.state[f"{name}.weight"])
        bias = self.graph.constant(f"{name}.bias", self.state[f"{name}.bias"])
        return self.op("LayerNormalization", [value, weight, bias], name, axis=-1, epsilon=EPSILON)

    def op(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        return self.graph.node(op, inputs, name, **attributes)

    def scalar(self, name: str, value: float) -> str:
        return self.graph.constant(name, value, np.float32)

    def axes(self, name: str, *values: int) -> str:
        return self.graph.constant(name, values, np.int64)
