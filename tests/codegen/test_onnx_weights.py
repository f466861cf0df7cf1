"""ONNX files with weights, of a spec or of a package: ONNX Runtime against the module that has the same state_dict."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.frontends.test_outputs import SPEC
from weft import api, cli
from weft.errors import FileError
from weft.passes.inference import inference

DROPPED = SPEC.replace("blocks:", "sublayer: {dropout: 0.5}\nblocks:")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A spec with dropout, its package lowered for training, and the weights in every kind of file."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "s.yaml").write_text(DROPPED)
    module = api.compile(folder / "s.yaml", out=folder / "out", target="cpu")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape))
    held = module.state_dict()
    torch.save(held, folder / "w.pt")
    torch.save({"state_dict": {f"module.{n}": x for n, x in held.items()}}, folder / "wrapped.pt")
    torch.save(held, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "w.safetensors").write_bytes(safetensors(held))
    (folder / "half.safetensors").write_bytes(safetensors({n: x.bfloat16() for n, x in held.items()}))
    return folder


def safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, x in tensors.items():
        raw = x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = {torch.float32: "F32", torch.bfloat16: "BF16"}[x.dtype]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def truth(home: Path, weights: str) -> tuple[np.ndarray, np.ndarray]:
    module = api.load(home / "out")
    held = torch.load(home / "w.pt")
    module.load_state_dict({n: x.bfloat16().float() if weights.startswith("half") else x for n, x in held.items()})
    tokens = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(3))
    return tokens.numpy(), module.eval()(tokens, tokens).logits.detach().numpy()


@pytest.mark.parametrize("weights", ["w.pt", "wrapped.pt", "old.pt", "w.safetensors", "half.safetensors"])
@pytest.mark.parametrize("external", [False, True])
def test_the_graphs_of_a_package_run_with_its_weights(home, tmp_path, weights, external):
    paths = api.export(home / "out", "onnx", tmp_path / "x", weights=home / weights, external=external)
    tokens, want = truth(home, weights)

    assert [Path(p).name for p in paths] == ["portable.onnx", "semantic.onnx", *(["weights.bin"] if external else [])]
    for path in paths[:2]:
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [i.name for i in session.get_inputs()] == ["tokens"]
        (got,) = session.run(["logits"], {"tokens": tokens})
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_without_weights_a_package_is_exported_as_its_spec(home, tmp_path):
    api.export(home / "out", "onnx", tmp_path / "a")
    api.export(home / "s.yaml", "onnx", tmp_path / "b")
    a, b = (onnx.load(tmp_path / n / "portable.onnx") for n in "ab")

    assert [i.name for i in a.graph.input] == [i.name for i in b.graph.input]
    assert [n.op_type for n in a.graph.node] == [n.op_type for n in b.graph.node]


@pytest.mark.parametrize("name", ["gpt2_345m", "switch_base", "sru_pp_enwik8", "bert_base"])
def test_a_training_program_without_training_is_the_one_lowered_so(name):
    """But for names, and for what only a loss read."""
    spec = api.open_spec(Path(__file__).parents[2] / f"examples/specs/{name}.yaml", (), True)
    made, want = inference(api.program(spec, True)), api.program(spec, False)

    assert (made.inputs, made.outputs, made.params) == (want.inputs, want.outputs, want.params)
    assert [type(n.op) for n in made.graph.nodes] == [type(n.op) for n in want.graph.nodes]
    assert inference(want) is want


def rewritten(file: Path, made: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    found = made(torch.load(file.parent / "given.pt"))
    if file.suffix == ".pt":
        torch.save(found, file)
    else:
        file.write_bytes(safetensors(found))


def headed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:700]),
    "text": lambda f: f.write_text("hello"),
    "folder": lambda f: (f.unlink(), f.mkdir()),
    "long header": lambda f: f.write_bytes(b"\xff" * 8 + f.read_bytes()[8:]),
    "no shapes": lambda f: f.write_bytes(headed(b'{"a":[1]}')),
    "outside": lambda f: f.write_bytes(headed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}')),
    "code": lambda f: f.write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85q\x01Rq\x02."),
    "another model's": lambda f: rewritten(f, lambda held: {"x": torch.zeros(3)}),
    "one more": lambda f: rewritten(f, lambda held: {**held, "x": torch.zeros(3)}),
    "other shapes": lambda f: rewritten(f, lambda held: {n: torch.zeros(2) for n in held}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("weights", ["w.pt", "w.safetensors"])
def test_a_file_that_does_not_fit_is_one_line(home, tmp_path, weights, damage, capsys):
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes((home / name).read_bytes())
    (tmp_path / "given.pt").write_bytes((home / "w.pt").read_bytes())
    DAMAGE[damage](tmp_path / weights)
    given = ["--weights", str(tmp_path / weights), "-o", str(tmp_path / "x")]

    assert cli.run(["export", str(home / "out"), "--format", "onnx", *given]) == 3
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert err.startswith(f"error: {tmp_path / weights}: ")
    assert not (tmp_path / "x").exists()


def test_weights_go_with_onnx_alone(home, tmp_path):
    given = ["export", str(home / "s.yaml"), "--format", "dot", "-o", str(tmp_path / "x"), "--weights", "w.pt"]

    assert cli.run(given) == 2


def test_what_wrappers_put_before_names_is_taken_off_only_where_all_have_it(home, tmp_path):
    held = torch.load(home / "w.pt")
    torch.save({f"module.{n}" if i else n: x for i, (n, x) in enumerate(held.items())}, tmp_path / "w.pt")

    with pytest.raises(FileError, match=r"has no .*; it has module"):
        api.export(home / "out", "onnx", tmp_path / "x", weights=tmp_path / "w.pt")
