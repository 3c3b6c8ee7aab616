"""Model files that name other files, claim absurd sizes or nest absurdly: each is one line, and nothing is read."""

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import Command

from edgepipe.core import archives
from edgepipe.core.artifact import content_digest
from edgepipe.core.errors import InputError
from edgepipe.core.hdf5_check import check_hdf5
from edgepipe.models.file_kind import MAX_CONFIG_DEPTH, detect_kind, read_config

SECRET = b"root:x:0:0:the password file" * 8
SHAPE = (4, 7)
KERNEL = "layers/dense/vars/0"


def _secret(folder: Path) -> Path:
    (folder / "secret").write_bytes(SECRET)
    return folder / "secret"


def _external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset(KERNEL, SHAPE, "f4", external=[(str(_secret(folder)), 0, 112)])


def _external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["weights"] = np.ones(SHAPE, "f4")
    file[KERNEL] = h5py.ExternalLink(str(folder / "other.h5"), "/weights")


def _external_link_to_a_group(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["group/weights"] = np.ones(SHAPE, "f4")
    file["layers"] = h5py.ExternalLink(str(folder / "other.h5"), "/group")


def _soft_link(file: h5py.File, _: Path) -> None:
    file["weights"] = np.ones(SHAPE, "f4")
    file[KERNEL] = h5py.SoftLink("/weights")


def _dangling_soft_link(file: h5py.File, _: Path) -> None:
    file[KERNEL] = h5py.SoftLink("/nowhere")


def _virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "weights", SHAPE)
    file.create_virtual_dataset(KERNEL, layout)


def _virtual_of_the_same_file(file: h5py.File, _: Path) -> None:
    file["weights"] = np.ones(SHAPE, "f4")
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource(".", "weights", SHAPE)
    file.create_virtual_dataset(KERNEL, layout)


def _deflated(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, data=np.zeros(SHAPE, "f4"), compression="gzip")


def _shuffled(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, data=np.zeros(SHAPE, "f4"), chunks=SHAPE, shuffle=True)


def _with_checksums(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, data=np.zeros(SHAPE, "f4"), chunks=SHAPE, fletcher32=True)


def _lzf(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, data=np.zeros(SHAPE, "f4"), compression="lzf")


def _scale_offset(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, data=np.zeros(SHAPE, "i4"), chunks=SHAPE, scaleoffset=2)


def _contiguous_without_storage(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, (2**20, 2**20), "f4")


def _chunked_without_storage(file: h5py.File, _: Path) -> None:
    file.create_dataset(KERNEL, (2**20, 2**20), "f4", chunks=(8, 8))


REFUSED_HDF5: dict[str, tuple[Callable[[h5py.File, Path], None], str]] = {
    "external storage": (_external_storage, "keeps its bytes in another file, '{folder}/secret'"),
    "external link": (_external_link, "is a link into another file, '{folder}/other.h5'"),
    "external link to a group": (_external_link_to_a_group, "'/layers' is a link into another file"),
    "soft link": (_soft_link, "is a soft link to '/weights'"),
    "dangling soft link": (_dangling_soft_link, "is a soft link to '/nowhere'"),
    "virtual dataset": (_virtual, "is assembled from other files: {folder}/other.h5"),
    "virtual dataset of the same file": (_virtual_of_the_same_file, "is assembled from other files: ."),
    "gzip": (_deflated, "is stored through the filter 'deflate'"),
    "shuffle": (_shuffled, "is stored through the filter 'shuffle'"),
    "fletcher32": (_with_checksums, "is stored through the filter 'fletcher32'"),
    "lzf": (_lzf, "is stored through the filter 'lzf'"),
    "scale and offset": (_scale_offset, "is stored through the filter 'scaleoffset'"),
    "contiguous, nothing stored": (_contiguous_without_storage, "claims 4,398,046,511,104 bytes"),
    "chunked, nothing stored": (_chunked_without_storage, "claims 4,398,046,511,104 bytes"),
}


def _plain(file: h5py.File) -> None:
    file["contiguous"] = np.ones(SHAPE, "f4")
    file["scalar"] = 3
    file["text"] = "abc"
    file["texts"] = ["a", "bc"]
    file["nothing"] = h5py.Empty("f4")
    file["no elements"] = np.ones((0, 4), "f4")
    file["type"] = np.dtype("f4")
    file["again"] = file["contiguous"]  # a second hard link
    file["group/cycle"] = file["/"]
    file.create_dataset("chunks", data=np.ones(SHAPE, "f4"), chunks=(2, 7))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_INT8, h5py.h5s.create_simple((3,)), properties)


def test_plain_storage_and_links_are_taken(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        _plain(file)
    check_hdf5("m.h5", tmp_path / "m.h5")
    check_hdf5("m.h5", (tmp_path / "m.h5").read_bytes())


CONFIG = {"class_name": "Sequential", "config": {"name": "m", "layers": []}}


def _write_keras(path: Path, weights: bytes, config: Any = CONFIG) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", weights)


@pytest.mark.parametrize("case", REFUSED_HDF5)
def test_weights_that_are_not_plain_are_refused(case: str, tmp_path: Path, command: Command) -> None:
    """In a `.h5` and in the archive of a `.keras`, before any library reads them; a digest reads nothing either."""
    write, message = REFUSED_HDF5[case]
    h5_path, keras_path = tmp_path / "m.h5", tmp_path / "m.keras"
    with h5py.File(h5_path, "w") as file:
        file.attrs["model_config"], file.attrs["keras_version"] = json.dumps(CONFIG), "2.15.0"
        write(file, tmp_path)
    _write_keras(keras_path, h5_path.read_bytes())
    for path, readers in ((h5_path, [detect_kind]), (keras_path, [detect_kind, read_config, content_digest])):
        for reader in readers:
            with pytest.raises(InputError) as raised:
                reader(path)  # type: ignore[operator]
            assert message.format(folder=tmp_path) in str(raised.value)
    result = command("convert", h5_path, "--scheme", "float32", "-o", tmp_path / "out.tflite")
    assert (result.code, result.out) == (2, "")
    assert not (tmp_path / "out.tflite").exists()


def _empty_weights(folder: Path) -> bytes:
    with h5py.File(folder / "empty.h5", "w"):
        pass
    return (folder / "empty.h5").read_bytes()


def _nest(depth: int) -> str:
    return '{"class_name": "Sequential", "config": {"layers": [], "deep": ' + "[" * depth + "]" * depth + "}}"


CONFIGS = {
    "not JSON": ("{", "is damaged"),
    "a list": ("[]", "does not describe a model"),
    "no config": ('{"class_name": "Sequential"}', "does not describe a model"),
    "layers: null": ('{"class_name": "Sequential", "config": {"layers": null}}', "are no list of layers"),
    "layers: numbers": ('{"class_name": "Sequential", "config": {"layers": [1]}}', "are no list of layers"),
    "a nested model's layers": (
        '{"class_name": "Model", "config": {"layers": [{"class_name": "Model", "config": {"layers": {}}}]}}',
        "are no list of layers",
    ),
    "deep": (_nest(MAX_CONFIG_DEPTH), f"deeper than {MAX_CONFIG_DEPTH} levels"),
    "deeper than Python": (_nest(100_000), "is damaged"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_describe_no_model_are_refused(case: str, tmp_path: Path) -> None:
    text, message = CONFIGS[case]
    _write_keras(tmp_path / "m.keras", _empty_weights(tmp_path), text)
    with pytest.raises(InputError, match=message):
        detect_kind(tmp_path / "m.keras")


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup", "TextVectorization"])
@pytest.mark.parametrize("option", ["vocabulary", "idf_weights"])
def test_a_vocabulary_is_not_read_from_a_file(name: str, option: str, tmp_path: Path, command: Command) -> None:
    layer = {"class_name": name, "config": {"name": "words", option: str(_secret(tmp_path))}}
    config = {"class_name": "Sequential", "config": {"name": "m", "layers": [layer]}}
    _write_keras(tmp_path / "m.keras", _empty_weights(tmp_path), config)
    result = command("convert", tmp_path / "m.keras", "--scheme", "float32", "-o", tmp_path / "out.tflite")
    assert result.code == 2
    assert f"layer 'words' ({name}) takes its {option} from the file" in result.err


def _set_flag(path: Path, flag: int) -> None:
    """Set a flag of every member of a zip, in the local headers and in the directory."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + offset] |= flag
            start = content.find(signature, start + 4)
    path.write_bytes(content)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    _write_keras(tmp_path / "m.keras", _empty_weights(tmp_path))
    _set_flag(tmp_path / "m.keras", 1)
    for reader in (detect_kind, content_digest):
        with pytest.raises(InputError, match=r"'metadata\.json' inside it is encrypted"):
            reader(tmp_path / "m.keras")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_packing_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", method) as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(InputError, match=f"packed by method {method}"):
        detect_kind(tmp_path / "m.keras")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("model.weights.h5", "w") as member:
            for _ in range(archives.SMALL_BYTES // 2**24 + 1):
                member.write(bytes(2**24))
        archive.writestr("config.json", json.dumps(CONFIG))
    for reader in (detect_kind, content_digest):
        with pytest.raises(InputError, match=r"claim to unpack to 272.0 MiB"):
            reader(tmp_path / "m.keras")


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    _write_keras(tmp_path / "m.keras", _empty_weights(tmp_path))
    with pytest.raises(InputError, match="holds 3 files; at most 2 are read"):
        detect_kind(tmp_path / "m.keras")


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path: Path) -> None:
    """`zipfile` reads no more than a member declares, and the checksum tells."""
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", bytes(10_000))
    content = path.read_bytes()
    checksum = zlib.crc32(bytes(10_000)).to_bytes(4, "little")
    assert content.count(checksum) == 2
    path.write_bytes(content.replace((10_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(InputError, match=r"not a readable \.keras file"):
        detect_kind(path)
