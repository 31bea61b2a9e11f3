"""Reading tensors without unpickling: right on the published file, and a refusal for everything else."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from reid import lite0
from reid.errors import ModelError
from reid.weights import read_tensors


def test_the_published_file_holds_what_torch_finds_in_it() -> None:
    torch = pytest.importorskip("torch", reason="needs the train extra: torch is the reference here")
    path = lite0.weight_file()
    expected = torch.load(path, map_location="cpu", weights_only=True)
    found = read_tensors(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> object:
            return (Path.touch, (trap,))

    path = tmp_path / "evil.pth"
    path.write_bytes(
        b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, {"w": Evil()}, []))
    )
    with pytest.raises(ModelError):
        read_tensors(path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04zip", b"\x80\x02K\x01.", struct.pack("<q", 5) * 10])
def test_what_is_no_weight_file_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_tensors(path)
    assert caught.value.source == str(path)


def test_a_truncated_weight_file_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(lite0.weight_file().read_bytes()[:1_000_000])
    with pytest.raises(ModelError, match="cut short|ends early"):
        read_tensors(path)
