"""Embeddings by gradients, against gradients that autograd makes of each text alone."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models

from whet.adapt.model import LanguageModel
from whet.adapt.tuners.lora import linear_layers
from whet.embed.gradients import LossGradients, TensorSketch
from whet.embed.registry import get_embedder
from whet.errors import ModelError

TEXTS = ["a red fox", "red foxes run", "7 * 6 = 42", "x", "the court held that the appeal is lost"]
DIMENSION = 4096
OFF = 4 * (11 / DIMENSION) ** 0.5  # four standard deviations at most, of a cosine

ntk = partial(LossGradients, kind="ntk", dimension=DIMENSION)
influence = partial(LossGradients, kind="influence", dimension=DIMENSION)


@pytest.fixture(scope="module", params=sorted(tiny_models.CONFIGS))
def folder(request, tmp_path_factory):
    return str(tiny_models.save(tmp_path_factory.mktemp(request.param), request.param))


def loss(model, text):
    """Mean over the tokens, each predicted from a start token and those before it."""
    tokens = model.encode(text)[: model.max_length]
    inputs = torch.cat([torch.tensor([model.bos_token_id]), tokens[:-1]])
    logits = model.hf_model(input_ids=inputs[None]).logits[0, :, : model.vocab_size]
    return torch.nn.functional.cross_entropy(logits, tokens)


def gradients(folder, kind):
    """A row a text: the exact gradient of its loss."""
    model = LanguageModel.from_pretrained(folder)
    head = model.hf_model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # untied
    layers = [head] if kind == "ntk" else linear_layers(model.hf_model).values()
    weights = [layer.weight for layer in layers]
    made = [torch.autograd.grad(loss(model, text), weights) for text in TEXTS]
    return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in made])


def lengths(rows):
    return np.linalg.norm(rows, axis=1)


@pytest.mark.parametrize("kind", ["ntk", "influence"])
def test_inner_products_are_near_those_of_the_exact_gradients(folder, kind):
    exact = gradients(folder, kind)
    rows = LossGradients(folder, kind, dimension=DIMENSION, normalize=False).encode(TEXTS)
    sizes = np.outer(lengths(exact), lengths(exact))
    assert np.abs((rows @ rows.T - exact @ exact.T) / sizes).max() < OFF
    unit = LossGradients(folder, kind, dimension=DIMENSION).encode(TEXTS)
    np.testing.assert_allclose(unit, rows / lengths(rows)[:, None], atol=1e-4)


@given(
    left=st.integers(1, 6), right=st.integers(1, 6), t=st.integers(1, 5), seed=st.integers(0, 999)
)
def test_a_sketch_is_linear_in_the_outer_products(left, right, t, seed):
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.randn(t, left, generator=rng), torch.randn(t, right, generator=rng)
    sketch = TensorSketch(left, right, 16, seed)
    torch.testing.assert_close(
        sketch(u, v), sum((sketch(u[i : i + 1], v[i : i + 1]) for i in range(t)), torch.zeros(16))
    )
    torch.testing.assert_close(sketch(3 * u, v), 3 * sketch(u, v))


def test_sketches_keep_inner_products_on_average():
    rng = torch.Generator().manual_seed(0)
    u, v, x, y = (torch.randn(4, 5, generator=rng) for _ in range(4))
    exact = ((u.T @ v) * (x.T @ y)).sum()
    sketches = [TensorSketch(5, 5, 8, seed) for seed in range(1000)]
    made = torch.stack([sketch(u, v) @ sketch(x, y) for sketch in sketches])
    size = (u.T @ v).norm() * (x.T @ y).norm()
    assert abs(made.mean() - exact) < 4 * made.std() / 1000**0.5
    assert made.var() < 11 / 8 * size**2  # the bound that the docstring gives


def test_the_sketch_of_many_tokens_is_the_sum_of_its_parts():
    u, v = torch.randn(1100, 5), torch.randn(1100, 3)  # three blocks
    sketch = TensorSketch(5, 3, 16, 0)
    parts = sum(sketch(u[i : i + 100], v[i : i + 100]) for i in range(0, 1100, 100))
    torch.testing.assert_close(sketch(u, v), parts, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [ntk, influence])
def test_a_row_does_not_depend_on_the_batch_and_blanks_are_zero(folder, make):
    embedder = make(folder)
    together, again = embedder.encode([*TEXTS, " "]), embedder.encode([*TEXTS, " "])
    np.testing.assert_array_equal(together, again)
    assert not together[-1].any()
    for text, row in zip(TEXTS, together, strict=False):
        np.testing.assert_allclose(embedder.encode([text])[0], row, atol=1e-4)


@pytest.mark.parametrize("make", [ntk, influence])
def test_cosines_have_either_sign(make):
    rows = make("whet-pico").encode([TEXTS[-1], "the the the the the", "of of of of of", TEXTS[2]])
    assert (rows @ rows.T).min() < -0.05
    np.testing.assert_allclose(lengths(rows), 1, atol=1e-5)


def test_options_change_the_fingerprint_and_the_name_opens_it_again(folder):
    plain = LossGradients(folder, "ntk")
    for options in ("dimension=64", "seed=1", "dtype=bf16", "context=3", "normalize=false"):
        other = get_embedder(f"ntk:{folder}@{options}")
        assert other.fingerprint != plain.fingerprint
        assert other.name == f"ntk:{folder}@{options}"
    assert get_embedder(f"influence:{folder}").fingerprint != plain.fingerprint
    assert get_embedder(f"ntk:{folder}@dimension=2048,seed=0").name == plain.name


def test_chosen_layers_are_those_of_lora(tmp_path):
    folder = str(tiny_models.save(tmp_path / "m", "llama"))
    some = get_embedder(f"influence:{folder}@targets=q_proj+v_proj,dimension=64")
    assert some.name == f"influence:{folder}@targets=q_proj+v_proj,dimension=64"
    assert not np.allclose(some.encode(TEXTS), influence(folder, dimension=64).encode(TEXTS))
    with pytest.raises(
        ValueError, match="'k' in target_modules is not a linear layer: expected down_proj"
    ):
        get_embedder(f"influence:{folder}@targets=k")
    with pytest.raises(ValueError, match="ntk uses the head alone"):
        get_embedder(f"ntk:{folder}@targets=q_proj")


def test_a_tokenizer_without_a_first_token_is_one_clear_line(tmp_path):
    folder = tiny_models.save(tmp_path / "m")
    tokenizer = tiny_models.tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="has neither a BOS nor an EOS token"):
        ntk(str(folder))
