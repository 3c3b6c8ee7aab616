"""The identity of a dataset changes with everything that can change a sample, and only with that."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgepipe.core.errors import InputError
from edgepipe.data.data_spec import FunctionSpec, ImagesSpec, NpzSpec
from edgepipe.data.dataset_identity import compute_identity


def test_npz_content_counts_and_its_path_does_not(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    first_id = compute_identity(NpzSpec(npz="a.npz"), tmp_path)
    assert json.loads(json.dumps(first_id)) == first_id
    assert compute_identity(NpzSpec(npz="b.npz"), tmp_path / "there") == first_id
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert compute_identity(NpzSpec(npz="a.npz"), tmp_path) != first_id
    assert compute_identity(NpzSpec(npz="b.npz", test=0.3), tmp_path / "there") != first_id


def test_function_source_helper_arguments_and_files_count(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import helper\ndef load():\n    return helper.x\n")
    (tmp_path / "helper.py").write_text("import scipy\nx = 1\n")
    (tmp_path / "raw.csv").write_text("1,2")
    spec = FunctionSpec(function="mine:load", files=("raw.csv",))
    identities = [compute_identity(spec, tmp_path)]
    assert set(identities[0]["packages"]) == {"numpy", "scipy"}
    (tmp_path / "helper.py").write_text("import scipy\nx = 22\n")
    identities.append(compute_identity(spec, tmp_path))
    (tmp_path / "raw.csv").write_text("1,3")
    identities.append(compute_identity(spec, tmp_path))
    identities.append(compute_identity(spec.model_copy(update={"args": {"n": 1}}), tmp_path))
    assert len({json.dumps(dataset_id) for dataset_id in identities}) == 4
    assert compute_identity(spec, tmp_path) == identities[2]


def test_digits_names_scikit_learn(tmp_path: Path) -> None:
    packages = compute_identity(FunctionSpec(function="edgepipe.data:digits"), tmp_path)["packages"]
    assert packages["scikit-learn"][0].isdigit()
    assert "Pillow" not in packages


def test_image_folder_names_and_contents_count(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"1")
    first_id = compute_identity(ImagesSpec(images="."), tmp_path)
    assert "Pillow" in first_id["packages"]
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    second = compute_identity(ImagesSpec(images="."), tmp_path)
    (tmp_path / "cat" / "2.png").write_bytes(b"2")
    assert (
        len(
            {
                json.dumps(dataset_id)
                for dataset_id in (first_id, second, compute_identity(ImagesSpec(images="."), tmp_path))
            }
        )
        == 3
    )


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.npz: no such file"):
        compute_identity(NpzSpec(npz="gone.npz"), tmp_path)
