"""The embedder: its graph against transformers, its batches against one text at a time, its refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from autoglm_engine.embedder import Embedder, EmbedderManifest
from autoglm_engine.errors import ArtifactError
from autoglm_export.checkpoint.bundled import find_bundled
from autoglm_export.embedder.export import BUNDLED_EMBEDDER, export_embedder, read_checkpoint
from autoglm_export.errors import CheckpointError, UnsupportedModel
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

TEXTS = (
    "How do I sort a list in Python?",
    "法国的首都是哪里？",
    "x",
    "",
    "A sentence that is a good deal longer than its neighbours, so that they are padded. " * 3,
    "far more than the tokens that are read: " * 60,
)


@pytest.mark.parity
def test_embeddings_are_those_of_transformers(embedder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = find_bundled(BUNDLED_EMBEDDER).parent
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(list(TEXTS), return_tensors="pt", padding=True, truncation=True, max_length=256)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    np.testing.assert_allclose(Embedder(embedder).embed(TEXTS), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_batched_is_one_by_one(embedder: Path, texts: list[str]) -> None:
    model = Embedder(embedder)
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_texts_that_mean_alike_are_nearer_than_others(embedder: Path) -> None:
    car, vehicle, soup = Embedder(embedder).embed(["I bought a car", "I purchased an automobile", "The soup is cold"])
    assert car @ vehicle > 0.7 > 0.3 > car @ soup


def test_a_damaged_or_foreign_artifact_is_refused(embedder: Path, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedder, copy)
    with (copy / "model.onnx").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ArtifactError, match="has 100 bytes, the manifest says"):
        Embedder(copy)
    for folder in (artifact, tmp_path / "nothing"):
        with pytest.raises(ArtifactError, match="is no exported embedder"):
            EmbedderManifest.load(folder)


def test_another_architecture_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = find_bundled(BUNDLED_EMBEDDER).parent
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        export_embedder(tmp_path, tmp_path / "out")
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(source / name)
    config = json.loads((source / "config.json").read_text())
    for key, value, sentence in (
        ("model_type", "mpnet", "model_type is 'mpnet'"),
        ("hidden_act", "relu", "hidden_act"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UnsupportedModel, match=sentence):
            export_embedder(tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(UnsupportedModel, match="supported is the mean over tokens"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "out").exists()
