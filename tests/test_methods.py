"""The table of methods agrees with the code that it describes."""

import inspect
from dataclasses import fields

import pytest
import torch

import trl_plus
from trl_plus import objectives
from trl_plus.methods import FAMILIES, METHODS, trained_with
from trl_plus.objectives import Completions
from trl_plus.recipes.keys import config_keys

LOSSES = {
    f"{family.name}-{name}": (family, loss) for family in FAMILIES.values() for name, loss in family.losses.items()
}
OURS = {name: entry for name, entry in LOSSES.items() if entry[1].objective is not None}
NO_LOSS = {"Completions", "log1mexp", "log_odds", "log_odds_ratio", "reference_point"}
NEEDED = {"label_smoothing": 0.1, "gamma": 0.5}  # parameters without a default


def test_every_objective_is_in_the_table():
    assert {loss.objective for _, loss in OURS.values()} == set(objectives.__all__) - NO_LOSS


def test_every_loss_of_trl_is_in_the_table():
    assert set(config_keys("DPOConfig")["loss_type"].choices) <= set(FAMILIES["DPO"].losses)


@pytest.mark.parametrize("name", OURS)
def test_options_are_parameters_and_keys(name):
    family, loss = OURS[name]
    keys = {field.name for field in fields(getattr(trl_plus, family.config))}
    parameters = inspect.signature(getattr(objectives, loss.objective)).parameters
    assert set(loss.options) <= set(parameters)
    assert set(loss.options.values()) <= keys
    assert loss.margin == ("margin" in parameters)


def _loss(family, name, loss, ratio, tokens, **options):
    """The loss of completions of so many tokens, each of which has this log-ratio."""
    rows = Completions(torch.full((1, tokens), ratio - 1.0), torch.ones(1, tokens), torch.full((1, tokens), -1.0))
    function = getattr(objectives, loss.objective)
    known = inspect.signature(function).parameters
    given = {key: value for key, value in {**NEEDED, "loss_type": name, "beta": 0.5, **options}.items() if key in known}
    if family.paired:
        other = Completions(torch.full((1, 3), -1.2), torch.ones(1, 3), torch.full((1, 3), -1.0))
        return function(rows, other, **given).item()
    more = (torch.tensor(0.0),) if loss.objective == "kto" else ()
    return function(rows, torch.tensor([True]), *more, **given).item()


@pytest.mark.parametrize("name", OURS)
def test_the_reward_reads_what_the_table_says(name):
    """Twice the tokens with the same log-ratio each: a mean stays, a sum doubles."""
    family, loss = OURS[name]
    kinds = (
        {"sum": {}, "mean": {}} if loss.reward in ("sum", "mean") else {k: {"reduction": k} for k in ("sum", "mean")}
    )
    for kind, options in kinds.items():
        if loss.reward not in (kind, "ipo_reduction"):
            continue
        short, long = (_loss(family, name.split("-")[1], loss, 0.1, tokens, **options) for tokens in (4, 8))
        assert (short == pytest.approx(long, abs=1e-6)) == (kind == "mean")


def test_methods_that_average():
    averaging = {name for name, method in METHODS.items() if method.reward_reads() == "mean"}
    assert averaging == {"simpo", "orpo", "ipo", "dpo_norm"}


@pytest.mark.parametrize(
    "values, reads",
    [
        ({}, "sum"),
        ({"loss_type": ["sigmoid_norm"]}, "mean"),
        ({"loss_type": ["ipo"]}, "mean"),
        ({"loss_type": ["ipo"], "ipo_reduction": "sum"}, "sum"),
        ({"loss_type": ["sigmoid_norm", "bco_pair"]}, "sum"),
    ],
)
def test_the_reward_of_dpo_follows_its_losses(values, reads, tmp_path):
    args = trl_plus.DPOConfig(str(tmp_path), use_cpu=True, **values)
    assert METHODS["dpo"].reward_reads(args) == reads


def test_variants_have_their_own_names(tmp_path):
    def names(**values):
        args = trl_plus.DPOConfig(str(tmp_path), use_cpu=True, **values)
        return [loss.title for loss in trained_with(FAMILIES["DPO"], args)]

    assert names() == ["DPO"]
    assert names(label_smoothing=0.1) == ["cDPO"]
    assert names(margin_scale=1.0) == ["ODPO"]
    assert names(loss_type=["sigmoid", "bco_pair", "sft"]) == [
        "DPO",
        "BCO on pairs",
        "likelihood of the chosen side (NLL)",
    ]


def test_classes_and_configurations_are_public():
    for family in FAMILIES.values():
        assert getattr(trl_plus, family.config).family is family
        assert getattr(trl_plus, family.trainer).config_class is getattr(trl_plus, family.config)
