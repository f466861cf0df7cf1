"""Padded batches of imported models: `valid` is transformers' attention_mask, and left padding changes no token."""

import pytest
import torch

import weft
from tests.campaign import SOAK
from tests.hf.models import doubled, oracle, saved
from weft import api

DECODERS = ("gpt2", "llama", "qwen3", "gemma2", "gpt_neox") if SOAK else ("gpt2",)
ENCODERS = ("roberta",) if SOAK else ()
VALID = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]).bool()


def padded(name, folder):
    """The model in transformers and in weft, with rows that may be padded."""
    model = oracle(name).eval()
    saved(model, folder)
    spec = folder / "padded.yaml"
    spec.write_text(api.import_hf(folder).text + "rows: {padding: true}\n")
    return model, weft.load_hf(folder, spec=spec).double()


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_left_padding(name, tmp_path):
    """Logits of tokens that are there are the batch's in transformers, greedy text that of each row alone."""
    model, module = padded(name, tmp_path)
    tokens = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(0)).where(VALID, 0)
    places = (VALID.long().cumsum(1) - 1).clamp(min=0)
    with doubled(name):
        want = model(tokens, attention_mask=VALID.long(), position_ids=places).logits
    out, state = module.prefill(tokens, VALID)
    assert torch.allclose(module(tokens, VALID).logits[VALID], want[VALID], rtol=0, atol=1e-10)
    text = [out.logits[:, -1].argmax(-1)]
    for _ in range(7):
        out, state = module.step(text[-1], torch.ones(3, dtype=torch.bool), state)
        text.append(out.logits.argmax(-1))
    greedy = {"max_new_tokens": 8, "do_sample": False}
    for row, own in enumerate(VALID):
        alone = tokens[row : row + 1, own]
        found = model.generate(alone, attention_mask=torch.ones_like(alone), **greedy)[0, alone.shape[1] :]
        assert torch.equal(torch.stack(text, 1)[row], found)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_padding_behind(name, tmp_path):
    model, module = padded(name, tmp_path)
    valid = VALID.flip(1)
    tokens = torch.randint(1, 90, (3, 7), generator=torch.Generator().manual_seed(0)).where(valid, 0)
    want = model(tokens, attention_mask=valid.long()).logits
    assert torch.allclose(module(tokens, valid).logits[valid], want[valid], rtol=0, atol=1e-6)
