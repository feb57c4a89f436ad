"""Tests of the configuration: saving and loading, overrides, and an error of one line for each mistake."""

import pytest
from support.paths import ROOT

pytest.importorskip("yaml", reason="configurations need PyYAML")
pytest.importorskip("lightning", reason="training needs lightning")

from se_fused._errors import InputError
from se_fused.apps.fracture.training import Config
from se_fused.models import create_model

pytestmark = pytest.mark.quick

CONFIGS = sorted((ROOT / "se_fused" / "apps" / "fracture" / "configs").glob("*.yaml"))


def test_round_trip(tmp_path):
    made = Config().overridden(
        ["model.options.width=8", "model.name=unet", "training.learning_rate=1e-3", "seed=7", "data.path=a b/c: d.csv"]
    )
    assert made.model.options == {"width": 8} and made.training.learning_rate == 1e-3 and made.seed == 7
    made.save(tmp_path / "config.yaml")
    assert Config.load(tmp_path / "config.yaml") == made
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_shipped_files(path):
    made = Config.load(path)
    create_model(made.model.name, num_classes=6, in_chans=1, device="meta", **made.model.options)
    assert made.output != Config().output


def test_there_are_shipped_files():
    assert {path.name for path in CONFIGS} >= {"small-cpu.yaml", "full-gpu.yaml"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "there is no key training.epoch; did you mean training.epochs"),
        ("epochs: 3", "there is no key epochs; did you mean training.epochs"),
        ("trainning: {epochs: 3}", "there is no key trainning; did you mean training"),
        ("training: {epochs: three}", "training.epochs must be an integer; got 'three'"),
        ("training: {epochs: 3.5}", "training.epochs must be an integer; got 3.5"),
        ("training: {epochs: true}", "training.epochs must be an integer; got True"),
        ("training: {epochs: 0}", "training.epochs must be from 1 to"),
        ("training: {learning_rate: .nan}", "training.learning_rate must be from"),
        ("training: {class_weights: big}", "must be one of none, inverse, sqrt, effective; got 'big'"),
        ("training: {device: tpu}", "training.device must be auto, cpu, cuda or cuda:INDEX; got 'tpu'"),
        ("training: {device: 'cuda:x'}", "training.device must be"),
        ("training: 3", "training must be a section with keys; got 3"),
        ("model: {name: seresnet51}", "there is no model 'seresnet51'; did you mean seresnet50"),
        ("model: {options: {num_classes: 3}}", "must not contain num_classes"),
        ("model: {fused: 1}", "model.fused must be true or false; got 1"),
        ("data: {depth: 12}", "data.depth must be one of 8, 16; got 12"),
        ("output: ''", "output must not be empty"),
        ("[1, 2]", "must be a mapping with data"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        Config.load(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epochs", "must be KEY=VALUE"),
        ("training.epohcs=3", "did you mean training.epochs"),
        ("data.x.y=3", "there is no key data.x.y"),
        ("training.epochs=[", "not valid YAML"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        Config().overridden([setting])


def test_yaml_spellings():
    """YAML reads 32 as a number, and 1e-3 and none as texts; null is an error."""
    made = Config().overridden(["training.precision=32", "training.class_weights=none", "training.weight_decay=1e-3"])
    assert made.training.precision == "32" and made.training.weight_decay == 0.001
    with pytest.raises(InputError, match=r"model\.name must be a string; got None"):
        Config().with_values({"model.name": None})


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        Config.load(tmp_path / "none.yaml")


def test_differences_leave_out_what_changes_no_result():
    made = Config()
    assert made.differences(made.overridden(["data.workers=3", "output=x", "data.cache=none"])) == []
    assert made.differences(made.overridden(["seed=1", "training.ema=0"])) == ["training.ema", "seed"]
