"""The IJB protocol against a scalar reading of it, and what is wrong with its lists."""

from __future__ import annotations

import numpy as np
import pytest

from facerec.errors import ConfigError
from tests.evaluation_oracles import (
    embedding,
    tar_oracle,
    tiny_network,
    unit,
    write_ijb,
)
from tests.training_runs import (
    one_thread,
)
from training.backbones import Backbone
from training.evaluate import SetOptions, open_set
from training.evaluation.ijb import people_of, read_templates
from training.evaluation.models import Model, TorchModel


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def network() -> Backbone:
    return tiny_network()


@pytest.fixture(scope="module")
def model(network: Backbone) -> Model:
    return TorchModel(network, name="tiny")


@pytest.mark.parametrize("weights", [("detector", "norm"), ("detector",), ("norm",), ()])
def test_templates_against_the_protocol_read_aloud(
    tmp_path, network: Backbone, model: Model, weights
):
    made = write_ijb(tmp_path / "IJB-C")
    features = {}
    for template, items in made["where"].items():
        total = np.zeros(16)
        for frames in items.values():
            mean = np.zeros(16)
            for chip, score in frames:
                vector = embedding(network, chip, flip=True)
                if "norm" not in weights:
                    vector = unit(vector)
                if "detector" in weights:
                    vector = vector * score
                mean += vector / len(frames)
            total += mean
        features[template] = unit(total)
    scores = [(float(features[a] @ features[b]), bool(same)) for a, b, same in made["pairs"]]
    genuine = [score for score, same in scores if same]
    impostor = [score for score, same in scores if not same]

    opened = open_set(
        tmp_path / "IJB-C", model.preprocessing, model.detector_pack, SetOptions(weights=weights)
    )
    found = opened.template_features(model)
    assert found == pytest.approx(np.stack([features[t] for t in sorted(features)]), abs=2e-4)
    result = opened.measure(model)
    assert (result.name, result.kind, result.people) == ("ijbc", "ijb", 4)
    curve = result.pairs[0].rates.curve
    assert (curve.genuine, curve.impostor) == (len(genuine), len(impostor)) == (12, 54)
    for point in result.pairs[0].rates.points:
        assert 1 - point.point.fnmr == pytest.approx(
            tar_oracle(genuine, impostor, point.point.fmr), abs=1.5 / len(genuine)
        )
    assert f"weighted by: {', '.join(weights) or 'nothing'}" in " ".join(result.how)


def test_templates_that_genuine_pairs_join_are_one_person(tmp_path):
    write_ijb(tmp_path)
    protocol = read_templates(tmp_path / "meta", "ijbc")
    assert people_of(protocol).tolist() == [0, 1, 2, 3] * 3
    pairs = tmp_path / "meta" / "ijbc_template_pair_label.txt"
    pairs.write_text("100 108 1\n101 102 0\n\n105 101 1\n108 104 1\n")
    labels = people_of(read_templates(tmp_path / "meta", "ijbc"))
    groups = {frozenset(np.flatnonzero(labels == who).tolist()) for who in labels}
    assert {frozenset({0, 4, 8}), frozenset({1, 5}), frozenset({2})} <= groups
    assert len(groups) == 9


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("face_tid_mid", "\n2.png 100 ", "\n2.png 1x0 ", r"face_tid_mid.txt, line 2: template and"),
        ("face_tid_mid", "\n2.png 100 ", "\n2.png ", r"line 2: expected 'IMAGE TEMPLATE MEDIA'"),
        ("face_tid_mid", "\n2.png", "\n../2.png", r"line 2: '../2.png' is no name of a file"),
        ("face_tid_mid", "\n2.png", "\n2222.png", r"line 2: '2222.png' has no landmarks in"),
        ("name_5pts_score", None, None, r"5pts_score.txt, line 1: expected 'IMAGE X Y"),
        ("template_pair_label", "102 100 0", "102 100 2", r"pair_label.txt, line 2: the label is"),
        ("template_pair_label", "102 100 0", "102 999 0", r"line 2: template 999 has no image"),
        ("template_pair_label", "102 100 0", "102 100", r"line 2: expected 'TEMPLATE TEMPLATE LAB"),
        ("template_pair_label", "102 100 0", "102 x 0", r"line 2: expected 'TEMPLATE TEMPLATE LAB"),
        ("template_pair_label", " 1\n", " 0\n", r"0 of 66 pairs are genuine"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path, model: Model, name, old, new, message):
    write_ijb(tmp_path)
    path = tmp_path / "meta" / f"ijbc_{name}.txt"
    text = path.read_text()
    if old is None:  # the score is missing
        old = text.splitlines()[0]
        new = old.rsplit(" ", 1)[0]
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        open_set(tmp_path, model.preprocessing, model.detector_pack)


def test_missing_files_of_templates(tmp_path, model: Model):
    write_ijb(tmp_path)
    (tmp_path / "loose_crop" / "3.png").unlink()
    with pytest.raises(ConfigError, match=r"1 of the \d+ images of the protocol.*3.png"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    landmarks = tmp_path / "meta" / "ijbc_name_5pts_score.txt"
    doubled = landmarks.read_text()
    landmarks.write_text(doubled + doubled.splitlines()[0])
    with pytest.raises(ConfigError, match="is listed a second time"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    landmarks.unlink()
    with pytest.raises(ConfigError, match=r"5pts_score.txt: no such file; the template protocol"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
    (tmp_path / "meta" / "ijbc_face_tid_mid.txt").unlink()
    with pytest.raises(ConfigError, match=r"no list of images, such as ijbc_face_tid_mid.txt"):
        open_set(tmp_path, model.preprocessing, model.detector_pack)
