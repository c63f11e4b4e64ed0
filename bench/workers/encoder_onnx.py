"""An ONNX graph of a BERT encoder with mean pooling, out of a folder of Hugging Face's: what ONNX Runtime is given.

Made of the runtime's own fused operators (Attention, SkipLayerNormalization, BiasGelu), as its optimizer for
transformers makes them.
"""

import json

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

MS = "com.microsoft"


def build(folder):
    """The model as bytes: inputs ids and mask (i64 [B, T]), output embeddings [B, D] of length 1."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    weights, nodes, constants = load_file(f"{folder}/model.safetensors"), [], {}

    def constant(name, array):
        constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def weight(name):
        return constant(name, weights[name])

    def node(op, inputs, output, domain="", **attributes):
        nodes.append(helper.make_node(op, inputs, [output], domain=domain, **attributes))
        return output

    def skip(x, y, norm, bias, output):
        names = [x, y, weight(f"{norm}.weight"), weight(f"{norm}.bias"), *([weight(bias)] if bias else [])]
        return node("SkipLayerNormalization", names, output, MS, epsilon=config["layer_norm_eps"])

    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    node("Gather", [weight("embeddings.word_embeddings.weight"), "ids"], "words")
    node("Shape", ["ids"], "length", start=1)
    node("Slice", [constant("positions", positions), constant("zero", np.array([0])), "length"], "places")
    node("Unsqueeze", ["places", "zero"], "places3")
    node("Add", ["words", "places3"], "summed")
    names = ["summed", *(weight(f"embeddings.LayerNorm.{kind}") for kind in ("weight", "bias"))]
    x = node("LayerNormalization", names, "x", epsilon=config["layer_norm_eps"])
    node("Cast", ["mask"], "mask32", to=TensorProto.INT32)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        parts = [f"{at}.attention.self.{name}" for name in ("query", "key", "value")]
        w = constant(f"w{i}", np.concatenate([weights[f"{p}.weight"].T for p in parts], 1))
        b = constant(f"b{i}", np.concatenate([weights[f"{p}.bias"] for p in parts]))
        heads = config["num_attention_heads"]
        y = node("Attention", [x, w, b, "mask32"], f"a{i}", MS, num_heads=heads)
        dense = f"{at}.attention.output"
        y = node("MatMul", [y, constant(f"o{i}", weights[f"{dense}.dense.weight"].T)], f"p{i}")
        x = skip(y, x, f"{dense}.LayerNorm", f"{dense}.dense.bias", f"x{i}")
        y = node("MatMul", [x, constant(f"u{i}", weights[f"{at}.intermediate.dense.weight"].T)], f"h{i}")
        y = node("BiasGelu", [y, weight(f"{at}.intermediate.dense.bias")], f"g{i}", MS)
        y = node("MatMul", [y, constant(f"d{i}", weights[f"{at}.output.dense.weight"].T)], f"q{i}")
        x = skip(y, x, f"{at}.output.LayerNorm", f"{at}.output.dense.bias", f"y{i}")
    node("Cast", ["mask"], "seen", to=TensorProto.FLOAT)
    node("Unsqueeze", ["seen", constant("last", np.array([2]))], "seen3")
    node("Mul", [x, "seen3"], "kept")
    node("ReduceSum", ["kept", constant("one", np.array([1]))], "sum", keepdims=0)
    node("LpNormalization", ["sum"], "embeddings", axis=-1, p=2)
    shapes = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("ids", "mask")]
    result = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["B", config["hidden_size"]])
    graph = helper.make_graph(nodes, "encoder", shapes, [result], list(constants.values()))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
