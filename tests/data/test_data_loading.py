"""Every source against data written independently, and the messages for bad data."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import DataSpec, FashionSpec, FunctionSpec, IdxSpec, ImagesSpec, NpzSpec
from edgepipe.data.dataset_loading import load
from edgepipe.data.split_names import Split
from edgepipe.data.splits import DatasetSplits

ALL_SPLITS = frozenset(Split)


def load_all(spec: DataSpec, base: Path) -> DatasetSplits:
    return load(spec, base, 7, ALL_SPLITS)


def write_npz(folder: Path, **arrays: Any) -> NpzSpec:
    np.savez(folder / "a.npz", **arrays)
    return NpzSpec(npz="a.npz")


def test_npz_is_float32_and_complete(tmp_path: Path) -> None:
    x = np.random.RandomState(0).normal(size=(50, 3))
    splits = load_all(write_npz(tmp_path, x=x, y=np.arange(50) % 5), tmp_path)
    all_samples = np.concatenate([splits.train.x, splits.validation.x, splits.test.x])
    assert all_samples.dtype == np.float32
    np.testing.assert_array_equal(np.sort(all_samples, axis=0), np.sort(x.astype(np.float32), axis=0))
    assert splits.class_count == 5
    assert dict(splits.count_by_split) == {Split.TRAIN: 30, Split.VALIDATION: 10, Split.TEST: 10}
    assert splits.notes == ()


def test_npz_keeps_its_own_splits(tmp_path: Path) -> None:
    x = np.arange(60.0).reshape(60, 1)
    spec = write_npz(tmp_path, x_train=x[:40], y_train=np.arange(40) % 2, x_test=x[40:], y_test=np.arange(20) % 2)
    splits = load_all(spec, tmp_path)
    np.testing.assert_array_equal(splits.test.x, x[40:])
    assert len(splits.train) == 32
    assert len(splits.validation) == 8
    assert set(splits.train.x.ravel()) | set(splits.validation.x.ravel()) == set(range(40))
    with pytest.raises(InputError, match=r"has a test split of its own; remove `test: 0.5`"):
        load_all(NpzSpec(npz="a.npz", test=0.5), tmp_path)


def test_npz_names_and_column_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signal=np.ones((20, 2)), kind=(np.arange(20) % 2)[:, None])
    splits = load_all(NpzSpec(npz="a.npz", x="signal", y="kind"), tmp_path)
    assert splits.train.y is not None
    assert splits.train.y.shape == (len(splits.train),)
    assert splits.class_count == 2


def test_missing_labels_are_reported(tmp_path: Path) -> None:
    splits = load_all(write_npz(tmp_path, x=np.ones((20, 2)), labels=np.ones(20)), tmp_path)
    assert splits.train.y is None
    assert splits.class_count is None
    assert splits.notes == (f"{tmp_path}/a.npz has no array 'y' (it has x, labels): samples without labels",)


@pytest.mark.parametrize(("rescale", "low", "high"), [("none", 0, 255), ("unit", 0, 1), ("signed", -1, 1)])
def test_rescale(rescale: Any, low: float, high: float, tmp_path: Path) -> None:
    pixels = np.array([[0], [255]] * 10, np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels)
    splits = load_all(NpzSpec(npz="a.npz", rescale=rescale), tmp_path)
    assert sorted(set(np.concatenate([splits.train.x, splits.validation.x, splits.test.x]).ravel())) == [low, high]


NAN = np.ones((10, 3))
NAN[4, 1] = np.nan
INF = np.ones((10, 2))
INF[2, 0], INF[3, 1] = np.inf, -np.inf
OBJECTS = np.array([{"a": 1}] * 10, dtype=object)
BAD_ARRAYS: list[tuple[dict[str, Any], str]] = [
    ({"x": NAN}, r"array x has 1 NaN of 30 values, the first at index \[4, 1\]; clean the data"),
    ({"x": INF}, r"array x has 2 infinite of 20 values, the first at index \[2, 0\]"),
    ({"x": np.full((10, 1), 1e300)}, r"array x has 10 beyond float32 of 10 values, the first at index \[0, 0\]"),
    ({"x": np.ones(10), "y": NAN[:, 1]}, r"array y has 1 NaN of 10 values, the first at index \[4\]"),
    ({"x": np.ones((0, 3))}, r"array x is empty: its shape is \(0, 3\)"),
    ({"x": np.float64(3)}, "array x is a single number; its first axis must count samples"),
    ({"x": np.ones(10), "y": np.arange(9)}, r"differ in their number of samples: x has 10, y has 9"),
    ({"x": np.array(["a", "b"] * 5)}, "array x has type <U1; allowed: integers, floats, booleans"),
    ({"x": np.ones(10, complex)}, "array x has type complex128"),
    ({"x": OBJECTS}, "array 'x' holds Python objects, which means running code from the file; refused"),
    ({"x": np.full(10, 2**30)}, "integers up to 1073741824, which float32 cannot hold exactly"),
    ({"z": np.ones(10)}, r"no array 'x' \(nor x_train\); allowed: z"),
    (
        {"x_train": np.ones((20, 3)), "x_test": np.ones((5, 4))},
        r"one sample of test is \{'x': \(4,\)\}, one of train is \{'x': \(3,\)\}",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_ARRAYS, ids=[message[:40] for _, message in BAD_ARRAYS])
def test_bad_arrays(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_all(write_npz(tmp_path, **arrays), tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    evil = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    (tmp_path / "a.npz").write_bytes(evil)
    with pytest.raises(InputError, match=r"not a .npz file"):
        load_all(NpzSpec(npz="a.npz"), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("size", [10, 300, 700])
def test_truncated_npz(size: int, tmp_path: Path) -> None:
    spec = write_npz(tmp_path, x=np.ones((50, 3)))
    file_bytes = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(file_bytes[:size])
    with pytest.raises(InputError, match=r"a.npz: not a .npz file"):
        load_all(spec, tmp_path)


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.RandomState(0).normal(size=(50, 30)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[500:600] = bytes(100)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="array 'x' is damaged"):
        load_all(NpzSpec(npz="a.npz"), tmp_path)


def test_rescale_needs_unsigned_integers(tmp_path: Path) -> None:
    write_npz(tmp_path, x=np.ones((20, 2)))
    with pytest.raises(InputError, match="`rescale: unit` needs unsigned integers such as uint8, found float64"):
        load_all(NpzSpec(npz="a.npz", rescale="unit"), tmp_path)


def test_regression_on_integers_is_drawn_without_strata(tmp_path: Path) -> None:
    write_npz(tmp_path, x=np.ones((20, 2)), y=np.arange(20))
    with pytest.raises(InputError, match=r"class 0 has 1 sample, .*`stratify: false`"):
        load_all(NpzSpec(npz="a.npz"), tmp_path)
    assert load_all(NpzSpec(npz="a.npz", stratify=False), tmp_path).count_by_split[Split.TEST] == 4


# --- functions ---------------------------------------------------------------------------------------------------


def write_function(folder: Path, body: str) -> FunctionSpec:
    (folder / "mydata.py").write_text(f"import numpy as np\n\ndef load(n=20):\n    {body}\n")
    return FunctionSpec(function="mydata:load")


def test_function_forms(tmp_path: Path) -> None:
    alone = load_all(write_function(tmp_path, "return np.ones((n, 2))"), tmp_path)
    assert alone.train.y is None
    multi_input = load_all(
        write_function(tmp_path, "return {'a': np.ones((n, 2)), 'b': np.ones((n, 3))}, np.arange(n) % 2"), tmp_path
    )
    assert isinstance(multi_input.test.x, dict)
    assert {name: array.shape for name, array in multi_input.test.x.items()} == {"a": (4, 2), "b": (4, 3)}
    split = load_all(
        write_function(tmp_path, "return {'train': (np.ones((n, 2)), None), 'test': np.zeros((3, 2))}"), tmp_path
    )
    assert len(split.test) == 3
    spec_with_args = write_function(tmp_path, "return np.ones((n, 2))").model_copy(update={"args": {"n": 100}})
    assert sum(load_all(spec_with_args, tmp_path).count_by_split.values()) == 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"mydata:load failed at .*mydata.py:4: ZeroDivisionError: division by zero"),
        ("return 1, 2, 3, 4", r"a tuple of 4; allowed: \(x, y\), \(x, y, groups\), or x alone"),
        ("return None", "mydata:load gives nothing; allowed:"),
        ("return [[1], [1, 2]]", "x is not an array"),
        ("return [np.ones((n, 2)), np.ones(n)]", r"gives a list of 2 arrays; \(x, y\) is a tuple"),
        ("yield 1", "mydata:load gives a generator; allowed:"),
        ("return load", "mydata:load gives a function; allowed:"),
        ("raise SystemExit(3)", r"mydata:load called exit\(3\); let it raise an error instead"),
        (
            "return {'train': (np.ones((n, 2)), None), 'tset': (1, 2)}",
            r"gives \(x, y\) for train, tset; allowed: train",
        ),
        ("return {'test': (np.ones((n, 2)), None)}", r"gives \(x, y\) for test; allowed: train"),
        ("return np.ones(n), np.ones(n)", r"x has shape \(20,\), one number a sample; .*: \(n, 1\)"),
        ("return np.ones((n, 2)), None, np.full(n, np.nan)", "20 of 20 groups are NaN"),
        ("return np.ones((n, 2)), None, np.ones(n)", r"mydata:load: 1 group \(1.0\) cannot be kept apart in 3 splits"),
        ("return np.ones((n, 2)), np.arange(n)", "mydata:load: class 0 has 1 sample, too few"),
        ("return {}", "x is an empty mapping"),
        ("return np.ones((n, 2)), np.ones(n + 1)", "x has 20, y has 21"),
    ],
)
def test_bad_functions(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_all(write_function(tmp_path, body), tmp_path)


def test_wrong_arguments_of_a_function(tmp_path: Path) -> None:
    spec = write_function(tmp_path, "return np.ones((n, 2))").model_copy(update={"args": {"m": 3}})
    with pytest.raises(InputError, match="cannot be called: got an unexpected keyword argument 'm'; `args:` gives m"):
        load_all(spec, tmp_path)
    needs = write_function(tmp_path, "return np.ones((n, 2))")
    (tmp_path / "mydata.py").write_text((tmp_path / "mydata.py").read_text().replace("n=20", "n"))
    with pytest.raises(InputError, match="missing a required argument: 'n'; `args:` gives none"):
        load_all(needs, tmp_path)


def test_output_of_a_function_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_all(write_function(tmp_path, "print('hello'); return np.ones((n, 2))"), tmp_path)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "hello\n")


def test_a_failing_tf_dataset(tmp_path: Path) -> None:
    body = (
        "import tensorflow as tf\n"
        "    def give():\n        yield np.zeros(3, 'f4')\n        raise ValueError('bad record')\n"
        "    return tf.data.Dataset.from_generator(give, output_signature=tf.TensorSpec((3,), tf.float32))"
    )
    with pytest.raises(InputError, match=r"the tf.data.Dataset failed after 1 element: .*bad record"):
        load_all(write_function(tmp_path, body), tmp_path)


def test_unread_arrays_are_reported(tmp_path: Path) -> None:
    x, y = np.ones((20, 3)), np.arange(20) % 2
    assert load_all(write_npz(tmp_path, x=x, y=y, extra=y), tmp_path).notes == (
        f"{tmp_path / 'a.npz'}: arrays that are not read: extra",
    )
    notes = load_all(write_npz(tmp_path, x_train=x, y_train=y, x_tset=x), tmp_path).notes
    assert notes == (f"{tmp_path / 'a.npz'}: arrays that are not read: x_tset",)


def test_negative_labels_are_not_classes(tmp_path: Path) -> None:
    assert load_all(write_npz(tmp_path, x=np.ones((20, 3)), y=np.arange(20) % 2 - 1), tmp_path).class_count is None


# --- IDX -----------------------------------------------------------------------------------------------------------


def idx_bytes(array: Array, code: int = 8) -> bytes:
    return struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_files(folder: Path) -> tuple[Array, Array]:
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (30, 5, 4)).astype(np.uint8)
    labels = (np.arange(30) % 3).astype(np.uint8)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images[:24])))
    (folder / "train-labels.idx1-ubyte").write_bytes(idx_bytes(labels[:24]))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images[24:]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels[24:])))
    return images, labels


@pytest.mark.parametrize("spec", [IdxSpec(idx="."), FashionSpec(fashion_mnist="."), FashionSpec()])
def test_idx(spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = write_idx_files(tmp_path)
    monkeypatch.setenv("EDGEPIPE_DATA", str(tmp_path))
    splits = load_all(spec, tmp_path)
    np.testing.assert_allclose(splits.test.x, images[24:, :, :, None] / 255, rtol=1e-6)
    np.testing.assert_array_equal(splits.test.y, labels[24:])
    assert splits.count_by_split[Split.TRAIN] == 18
    assert splits.class_count == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels.idx1-ubyte", b"", r"not an IDX file \(it begins with nothing\)"),
        ("train-labels.idx1-ubyte", b"PK\x03\x04", r"not an IDX file \(it begins with 50 4b 03 04\)"),
        (
            "train-labels.idx1-ubyte",
            idx_bytes(np.zeros(24, np.uint8))[:-3],
            r"has 29 bytes, the shape \(24,\) needs 32",
        ),
        ("train-labels.idx1-ubyte", idx_bytes(np.zeros(24, np.uint8))[:6], r"has 6 bytes, .* needs"),
        ("train-labels.idx1-ubyte", idx_bytes(np.zeros(23, np.uint8)), "has 24 images but .* has 23 labels"),
        ("train-images-idx3-ubyte.gz", gzip.compress(b"x" * 1000)[:20], "a damaged gzip file"),
    ],
    ids=["empty", "zip", "truncated", "no-shape", "fewer-labels", "gzip"],
)
def test_bad_idx(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_idx_files(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_all(IdxSpec(idx="."), tmp_path)


# --- images --------------------------------------------------------------------------------------------------------


def write_photo(path: Path, pixel_value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (pixel_value, 0, 255) if mode == "RGB" else pixel_value).save(path)


def write_photos(folder: Path, number: int = 6) -> None:
    for index in range(number):
        write_photo(folder / "cat" / f"{index}.png", index)
        write_photo(folder / "ant" / f"{index}.PNG", 100 + index)


def test_images(tmp_path: Path) -> None:
    write_photos(tmp_path)
    splits = load_all(ImagesSpec(images="."), tmp_path)
    assert splits.class_names == ("ant", "cat")
    assert splits.class_count == 2
    assert splits.test.x.shape == (2, 4, 6, 3)  # height before width
    x = np.concatenate([splits.train.x, splits.validation.x, splits.test.x])
    y = np.concatenate([splits.train.y, splits.validation.y, splits.test.y])
    reds = np.rint(x[:, 0, 0, 0] * 255).astype(int)
    assert sorted(reds) == [*range(6), *range(100, 106)]
    np.testing.assert_array_equal(y, (reds < 100).astype(int))
    assert (x[..., 2] == 1).all()


def test_images_by_split_resized_and_grey(tmp_path: Path) -> None:
    write_photos(tmp_path / "train")
    write_photos(tmp_path / "val", 2)
    write_photo(tmp_path / "test" / "cat" / "z.jpg", 50, (60, 40), "L")
    splits = load_all(ImagesSpec(images=".", size=(8, 10), channels=1, rescale="none"), tmp_path)
    assert splits.train.x.shape == (12, 8, 10, 1)
    assert splits.validation.x.shape == (4, 8, 10, 1)
    np.testing.assert_allclose(splits.test.x, 50, atol=1)
    np.testing.assert_array_equal(splits.test.y, [1])


def test_corrupt_images_are_all_named(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "cat" / "0.png").write_bytes(b"not an image")
    file_bytes = (tmp_path / "ant" / "3.PNG").read_bytes()
    (tmp_path / "ant" / "3.PNG").write_bytes(file_bytes[: len(file_bytes) - 30])
    write_photo(tmp_path / "ant" / "9.tif", 70_000, mode="I")
    with pytest.raises(InputError, match=r"3 images cannot be read; .*`skip_corrupt: true`") as error_info:
        load_all(ImagesSpec(images="."), tmp_path)
    for name in ("cat/0.png (not an image)", "ant/3.PNG (", "ant/9.tif (I pixels; convert"):
        assert name in str(error_info.value)
    splits = load_all(ImagesSpec(images=".", skip_corrupt=True), tmp_path)
    assert sum(splits.count_by_split.values()) == 10
    assert "skipped 3 images that" in splits.notes[0]
    assert "cat/0.png" in splits.notes[0]


def test_other_files_are_reported(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "cat" / "readme.txt").touch()
    (tmp_path / "cat" / ".DS_Store").touch()
    splits = load_all(ImagesSpec(images="."), tmp_path)
    assert splits.notes == (f"{tmp_path}: 1 file with other endings not read: readme.txt",)


def test_bad_image_folders(tmp_path: Path) -> None:
    write_photos(tmp_path / "a" / "train")
    write_photo(tmp_path / "a" / "test" / "cats" / "1.png", 1)
    with pytest.raises(InputError, match=r"training has no class 'cats'; did you mean 'cat'?"):
        load_all(ImagesSpec(images="a"), tmp_path)
    write_photos(tmp_path / "b")
    write_photo(tmp_path / "b" / "cat" / "x.png", 1, (9, 9))
    with pytest.raises(InputError, match=r"is \(9, 9\); set `size: \[height, width\]`"):
        load_all(ImagesSpec(images="b"), tmp_path)
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="has no subfolders"):
        load_all(ImagesSpec(images="c"), tmp_path)
    (tmp_path / "c" / "dog").mkdir()
    with pytest.raises(InputError, match="c/dog holds no image"):
        load_all(ImagesSpec(images="c"), tmp_path)
    write_photos(tmp_path / "d" / "val")
    with pytest.raises(InputError, match="d has val/ but no train/"):
        load_all(ImagesSpec(images="d"), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: a file; a folder was expected"):
        load_all(ImagesSpec(images="file"), tmp_path)


def test_unread_folders_beside_train_are_reported(tmp_path: Path) -> None:
    write_photos(tmp_path / "train")
    write_photos(tmp_path / "valid")
    notes = load_all(ImagesSpec(images="."), tmp_path).notes
    assert notes == (f"{tmp_path}: folders not read, as they are not splits: valid",)


def test_broken_links_and_emptied_classes_are_reported(tmp_path: Path) -> None:
    write_photos(tmp_path)
    (tmp_path / "cat" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"1 image cannot be read(.|\n)*gone.png \(No such file or directory\)"):
        load_all(ImagesSpec(images="."), tmp_path)
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"nothing of class dog can be read: .*gone.png .*bad.png \(not an image\)"):
        load_all(ImagesSpec(images=".", skip_corrupt=True), tmp_path)


def test_photos_are_rotated_upright_and_losses_are_reported(tmp_path: Path) -> None:
    write_photos(tmp_path)
    picture = Image.fromarray(np.repeat(np.arange(6, dtype=np.uint8), 4).reshape(6, 4) * 40)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera lay on its side
    picture.save(tmp_path / "cat" / "side.png", exif=exif)
    Image.new("RGBA", (6, 4), (1, 2, 3, 4)).save(tmp_path / "cat" / "glass.png")
    Image.new("L", (6, 4)).save(tmp_path / "cat" / "film.gif", save_all=True, append_images=[Image.new("L", (6, 4), 9)])
    splits = load_all(ImagesSpec(images=".", channels=1, rescale="none"), tmp_path)
    upright = np.array([[200, 160, 120, 80, 40, 0]] * 4)  # a quarter turn clockwise
    x = np.concatenate([splits.data_by_split[split].x for split in Split])
    assert any(np.array_equal(image[..., 0], upright) for image in x)
    for note in (
        "1 image rotated according to EXIF data",
        "1 image with transparency",
        "1 image with several pictures",
    ):
        assert any(note in line for line in splits.notes)


def test_builtin_dataset_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepipe import data

    images, labels = write_idx_files(tmp_path)
    monkeypatch.setenv("EDGEPIPE_DATA", str(tmp_path))
    arrays_by_split = data.fashion_mnist()
    np.testing.assert_allclose(arrays_by_split["train"][0][..., 0], images[:24] / 255, rtol=1e-6)
    np.testing.assert_array_equal(arrays_by_split["test"][1], labels[24:])
    x, y = data.digits()
    assert (x.shape, x.dtype, float(x.max()), y.dtype) == ((1797, 8, 8, 1), np.float32, 1.0, np.int64)
