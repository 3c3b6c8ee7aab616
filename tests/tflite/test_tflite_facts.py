"""Facts beyond counts: bytes read and written, variables, sparse and packed tensors, subgraphs, dead channels."""

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write
from tflite_published import FILES, MISSING
from tflite_seeds import branching, constant, indices, network, options, packed, quantized, stateful

from edgepipe.core.errors import InputError
from edgepipe.tflite import reader
from edgepipe.tflite.dead_channels import count_filters, find_dead_channels


def test_bytes_read_and_written(tmp_path: Path) -> None:
    model = reader.read(network(tmp_path / "m.tflite"))
    image = 12 * 12
    assert [(op.bytes_read, op.constant_bytes, op.bytes_written) for op in model] == [
        (image * 3, 8 * 27 + 8 * 4, image * 8),  # convolution
        (image * 8, 9 * 8 + 8 * 4, image * 8),  # depthwise
        (2 * image * 8, 0, image * 8),  # add
        (image * 8, 2 * 4, 8),  # mean, whose axes are constants
        (8, 5 * 8 + 5 * 4, 5),  # dense
        (5, 0, 5),  # softmax
    ]
    assert [op.parameters for op in model] == [8 * 27 + 8, 9 * 8 + 8, 0, 0, 5 * 8 + 5, 0]
    assert sum(op.parameters for op in model) == model.parameters


def test_a_tensor_read_twice_is_read_once_and_a_state_is_written(tmp_path: Path) -> None:
    square = Op("MUL", ("x", "x"), ("y",), options("MulOptions"))
    twice = write(tmp_path / "m.tflite", [T("x", (1, 6)), T("y", (1, 6))], [square], ["x"], ["y"])
    assert [(op.bytes_read, op.bytes_written) for op in reader.read(twice)] == [(6, 6)]
    model = reader.read(stateful(tmp_path / "s.tflite"))
    assert [(op.bytes_read, op.bytes_written) for op in model] == [(2 * 9 + 2 * 30 * 2, 2 * 3 + 2 * 30 * 2)]
    assert [(t.name, t.bytes) for t in model.variable_tensors] == [("state", 120)]


def test_a_table_is_read_as_far_as_it_is_looked_up(tmp_path: Path) -> None:
    tensors = [indices("i", 1, 2), constant("table", (1000, 16)), quantized("y", (2, 16))]
    lookup = Op("EMBEDDING_LOOKUP", ("i", "table"), ("y",))
    model = reader.read(write(tmp_path / "m.tflite", tensors, [lookup], [], ["y"]))
    assert [op.constant_bytes for op in model] == [2 * 16]


def test_packed_tensors_are_named(tmp_path: Path) -> None:
    model = reader.read(packed(tmp_path / "m.tflite"))
    assert [(t.name, t.dtype, t.element_count, t.bytes) for t in model.packed_tensors] == [("w", "int4", 640, 320)]
    assert model.parameters == 640 + 10
    assert model.sparse_tensors == ()


def test_subgraphs(tmp_path: Path) -> None:
    model = reader.read(branching(tmp_path / "m.tflite"))
    assert [(g.index, len(g.operators), len(g.tensors)) for g in model.subgraphs] == [(0, 1, 3), (1, 3, 4), (2, 1, 2)]
    assert [[t.name for t in g.inputs] for g in model.subgraphs] == [["c", "x"], ["x"], ["x"]]
    assert [op.location for op in model][1] == "EXP #0 of subgraph 1"


def _sparse(path: Path) -> Path:
    """A dense layer whose weights are stored in the sparse encoding, by hand into a dense file."""
    tensors = [quantized("x", (1, 4)), constant("w", (2, 4)), quantized("y", (1, 2))]
    dense_layer = Op("FULLY_CONNECTED", ("x", "w"), ("y",), options("FullyConnectedOptions"))
    net = write(path, tensors, [dense_layer], ["x"], ["y"])
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(net.read_bytes(), 0))
    sparsity, dense, compressed = schema.SparsityParametersT(), schema.DimensionMetadataT(), schema.DimensionMetadataT()
    dense.format, dense.denseSize = schema.DimensionType.DENSE, 2
    compressed.format = schema.DimensionType.SPARSE_CSR
    sparsity.traversalOrder, sparsity.dimMetadata = np.array([0, 1], np.int32), [dense, compressed]
    model.subgraphs[0].tensors[1].sparsity = sparsity
    model.buffers[model.subgraphs[0].tensors[1].buffer].data = np.array([1, 2, 3], np.uint8)
    import flatbuffers  # type: ignore[import-untyped]

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_sparse_tensors_are_named_and_not_decoded(tmp_path: Path) -> None:
    model = reader.read(_sparse(tmp_path / "m.tflite"))
    assert [(t.name, t.bytes, t.element_count) for t in model.sparse_tensors] == [("w", 3, 8)]
    assert model.unreadable_tensors == model.sparse_tensors
    assert find_dead_channels(model) == []
    with pytest.raises(InputError, match="sparse encoding"):
        model.read_values(model.sparse_tensors[0])


def _filters(path: Path, kind: str, weights: np.ndarray, **more: object) -> Path:
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    count = weights.shape[axis]
    shape = (1, weights.shape[-1]) if kind == "FULLY_CONNECTED" else (1, 6, 6, weights.shape[-1])
    tensors = [
        T("x", shape),
        T("w", weights.shape, data=weights.astype(np.int8), axis=axis, **more),  # type: ignore[arg-type]
        T("b", (count,), "int32", np.ones(count, np.int32)),
        T("y", (1, count) if len(shape) == 2 else (1, 6, 6, count)),
    ]
    return write(path, tensors, [Op(kind, ("x", "w", "b"), ("y",))], ["x"], ["y"])


@pytest.mark.parametrize(
    ("kind", "shape", "axis"),
    [("CONV_2D", (5, 3, 3, 4), 0), ("DEPTHWISE_CONV_2D", (1, 3, 3, 5), 3), ("FULLY_CONNECTED", (5, 8), 0)],
)
def test_dead_filters_are_counted(kind: str, shape: tuple[int, ...], axis: int, tmp_path: Path) -> None:
    weights = np.arange(1, 1 + np.prod(shape)).reshape(shape) % 7 + 1
    np.moveaxis(weights, axis, 0)[[1, 3]] = 0
    model = reader.read(_filters(tmp_path / "m.tflite", kind, weights))
    assert [(d.operator, d.tensor, d.filters, d.dead) for d in find_dead_channels(model)] == [(f"{kind} #0", "w", 5, 2)]
    assert count_filters(model) == 5
    weights[weights == 0] = 1
    assert find_dead_channels(reader.read(_filters(tmp_path / "m.tflite", kind, weights))) == []


def test_zero_is_the_zero_point_of_the_channel(tmp_path: Path) -> None:
    weights = np.zeros((3, 4))
    weights[1:] = 9
    scales = {"scales": (0.5, 0.5, 0.5), "zero_points": (0, 9, 0)}
    model = reader.read(_filters(tmp_path / "m.tflite", "FULLY_CONNECTED", weights, **scales))
    assert [d.dead for d in find_dead_channels(model)] == [2]


def test_a_computed_bias_keeps_a_filter_alive(tmp_path: Path) -> None:
    tensors = [T("x", (1, 4)), T("w", (2, 4), data=np.zeros((2, 4), np.int8)), T("b", (2,), "int32"), T("y", (1, 2))]
    ops = [Op("FULLY_CONNECTED", ("x", "w", "b"), ("y",))]
    assert find_dead_channels(reader.read(write(tmp_path / "m.tflite", tensors, ops, ["x", "b"], ["y"]))) == []
    ops = [Op("FULLY_CONNECTED", ("x", "w", None), ("y",))]
    assert len(find_dead_channels(reader.read(write(tmp_path / "m.tflite", tensors, ops, ["x"], ["y"])))) == 1


@pytest.mark.skipif(not FILES, reason=MISSING)
def test_the_dead_filters_of_visual_wake_words() -> None:
    """The folder's README counts 971 of the 2736 filters of its convolutions."""
    model = reader.read(next(path for path in FILES if path.name.startswith("visual_wake_words")))
    found = find_dead_channels(model)
    assert sum(layer.dead for layer in found) == 971
    dense = sum(op.outputs[0].element_count for op in model if op.name == "FULLY_CONNECTED" and op.outputs[0])
    assert count_filters(model) - dense == 2736
    by_hand = [int((model.read_centred_values(op.inputs[1]).reshape(op.inputs[1].shape[0], -1) == 0).all(axis=1).sum())
               for op in model if op.name == "CONV_2D" and op.inputs[1]]  # fmt: skip
    assert [n for n in by_hand if n] == [layer.dead for layer in found]


def test_constants_that_many_tensors_share_do_not_multiply_the_work(tmp_path: Path) -> None:
    """A small file that names one buffer of 100 kB ten thousand times."""
    data = bytes(100_000)
    tensors = [T("w", (100_000,), data=data), *(T(f"t{i}", (100_000,)) for i in range(3000)), T("y", (1,))]
    path = write(tmp_path / "m.tflite", tensors, [Op("ABS", ("w",), ("y",))], [], ["y"])
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    for tensor in model.subgraphs[0].tensors[:-1]:
        tensor.buffer = model.subgraphs[0].tensors[0].buffer
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    with pytest.raises(InputError, match="share constants to more than 64 times the size of the file"):
        reader.read(path)


def test_a_shape_that_no_memory_holds_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tflite", [T("x", (2**31 - 1,) * 30), T("y", (1,))], [Op("ABS", ("x",), ("y",))], ["x"],
                 ["y"])  # fmt: skip
    with pytest.raises(InputError, match=r"tensor 'x' has type 9 and shape \(2147483647, .* \.\. 30 in all\)"):
        reader.read(path)
