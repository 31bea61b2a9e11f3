"""What a training of a store is to be: head or whole network, by which recipe, and what its photos may not judge.

    options, reid.toml, the machine, the number of photos → a plan, and why it is so in words

Knows stores and recipes; trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from reid import ensemble, models, withheld, witness
from reid.config import TrainingConfig, TrainingMode
from reid.errors import TrainError
from reid.store import Store

if TYPE_CHECKING:
    from reid.train.recipe import Recipe

# By which a whole network is trained where none is named: flukes, in wide boxes, all lie alike; other animals do not.
# Where the network in force knows flukes already, FLUKES goes on from what ships.
FLUKES, RECIPE_WIDE, RECIPE = "flukes", "first_place", "any_animal"
LEAST_FULL = 1000  # photos with names from which on a GPU trains the whole network unasked

Mode = TrainingMode
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. 0 epochs and 0 views: as `[training]` in reid.toml says, or the recipe; mode "auto" without a recipe
    takes mode, recipe and minutes from there, too. `recipe` (of `reid.train.recipe`, or a .toml file), `scale` ("" for
    what the machine is fit for) and `minutes` (0: as long as the recipe says) are for the whole network. From 2 `folds`
    on as many models become one, each by the photos of the others; `pseudo_rounds` learn from photos without a name
    first (`reid.teaching`). `begin_with` is a trained network of the store that learns further, by its own recipe where
    none is named. With `refit` what was judged learns further from all photos, the judges' too, and is spoken for
    by its judged self (`reid.witness`); None: as `[training]` says, for whole networks.
    """

    mode: Mode = "auto"
    epochs: int = 0
    views: int = 0
    seed: int = 0
    name: str = "head"
    resume: bool = False
    recipe: str = ""
    scale: str = ""
    minutes: float = 0.0
    folds: int = 0
    fold_by: Literal["sighting", "identity"] = "sighting"
    pseudo_rounds: int = 0
    begin_with: str = ""
    refit: bool | None = None


UNASKED = Options()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained, by what recipe (None for a head), and why, in words."""

    mode: Mode
    recipe: Recipe | None
    why: str


def as_settled(options: Options, store: Store) -> Options:
    """With what `[training]` in reid.toml says where the options leave it open."""
    from reid.train import recipe as recipes

    rules = store.config.training
    if options.mode == "auto" and not (options.recipe or options.begin_with):
        own = store.root / rules.recipe  # a file of the store
        recipe = str(own) if rules.recipe.endswith(".toml") and own.is_file() else rules.recipe
        options = replace(options, mode=rules.mode, recipe=recipe, minutes=options.minutes or rules.minutes)
    present = store.embedder.card
    whole = options.mode == "full" or options.recipe
    if rules.onwards and whole and not (options.begin_with or options.folds):
        by = str(present.extra.get("recipe", ""))
        known = Path(options.recipe).stem == by if options.recipe else by in recipes.names()
        if known and present.extra.get("scale") == _scale(options):
            options = replace(options, begin_with=present.name)
    return options


def _scale(options: Options) -> str:
    """As asked for, or what the machine is fit for."""
    import torch

    return options.scale or ("gpu" if torch.cuda.is_available() else "laptop")


def planned(options: Options, store: Store) -> Plan:
    """Head or whole network, by the machine and the number of photos where it is not said, and why.

    Raises:
        ConfigError: no such recipe or scale.
    """
    import torch

    from reid.train import recipe

    cuda = torch.cuda.is_available()
    counts = store.catalogue.counts()
    photos = counts.annotations - counts.unnamed
    machine = f"{'a' if cuda else 'no'} CUDA device, {photos} boxes with a name"
    asked = options.mode == "full" or bool(options.recipe or options.begin_with)
    if options.mode == "head" or not (asked or (cuda and photos >= LEAST_FULL)):
        hint = "" if cuda else "; --mode full --minutes 60 trains all of it on a CPU"
        few = f"; fewer than {LEAST_FULL} are little for a whole network" if cuda and photos < LEAST_FULL else hint
        how = "asked for" if options.mode == "head" else "chosen"
        return Plan("head", None, f"head, {how}: {machine}; the network itself stays as it is{few}")
    scale = _scale(options)
    card = store.embedder.card
    seen = ensemble.lead(card)
    usual = RECIPE_WIDE if seen.width >= models.WIDE_ASPECT * seen.height else RECIPE
    if card.extra.get("recipe") == FLUKES:
        usual = FLUKES
    if options.begin_with:
        usual = _recipe_of(store, options.begin_with)
    if options.begin_with and not options.recipe and usual not in recipe.names():
        raise TrainError(
            f"'{options.begin_with}' was trained by a recipe of your own, '{usual}', which is not among those that ship",
            next_step="name its file: --recipe FILE.toml beside --from",
        )
    chosen = recipe.load(options.recipe or usual, scale)  # type: ignore[arg-type]  # a wrong one is refused there
    if options.epochs:
        chosen = replace(chosen, schedule=replace(chosen.schedule, epochs=options.epochs))
    if options.begin_with:
        chosen = _shaped_as(chosen, store, options.begin_with)
    if chosen.sampling.teacher:
        chosen = _with_teacher(chosen, store)
    how = "asked for" if asked else "chosen"
    bound = f", within {options.minutes:g} minutes" if options.minutes else ""
    return Plan("full", chosen, f"full, {how}: {machine}; recipe {chosen.name}, scale {scale}{bound}")


def refits(options: Options, plan: Plan, rules: TrainingConfig) -> bool:
    """Whether what is judged learns on from all photos.

    Raises:
        TrainError: it was asked for where it cannot be.
    """
    paired = plan.recipe is not None and plan.recipe.sampling.kind == "pairs"
    several = bool(options.folds or options.pseudo_rounds)
    if options.refit is None:
        return rules.refit and plan.recipe is not None and not (paired or several)
    if options.refit and several:
        raise TrainError(
            "folds and rounds of pseudo-labels are not taught further with the judges' photos",
            next_step="leave out --refit, or --folds and --pseudo-rounds",
        )
    if options.refit and paired:
        raise TrainError(
            "this recipe trains a Siamese head with its network, which would begin anew",
            next_step="leave out --refit, or choose another recipe",
        )
    return options.refit


def _shaped_as(recipe: Recipe, store: Store, model: str) -> Recipe:
    """The recipe with the network that `model` has, where that was made by an earlier form of the same recipe, at the
    same scale.

    Raises:
        ConfigError: the recipe asks for what that network does not have.
    """
    from reid.train.recipe import NetworkConfig, check

    extra = models.read_card(store.models_folder / model).extra
    if (extra.get("recipe"), extra.get("scale")) != (recipe.name, recipe.scale) or "network" not in extra:
        return recipe
    try:
        shaped = replace(recipe, network=NetworkConfig(**extra["network"]))
    except TypeError:  # of another version; what does not fit is said when its weights are read
        return recipe
    check(shaped, f"recipe {recipe.name} with the network of {model}", "train anew, without --from or onwards")
    return shaped


def _with_teacher(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with its teacher's directory: that of a model of the store, or a path.

    Raises:
        ConfigError: it is none.
    """
    from reid.train import teacher

    name = recipe.sampling.teacher
    own = store.models_folder / name
    folder = teacher.found(str(witness.inside(own) if own.is_dir() else name)).resolve()
    return replace(recipe, sampling=replace(recipe.sampling, teacher=str(folder)))


def learnt_before(store: Store, options: Options, plan: Plan, base: str) -> IntArray:
    """The annotations that a training knows through others: those learnt by the network that it goes on from, or that a
    head stands on (model `base`), and by its teacher. They judge nothing.

    Raises:
        TrainError: a teacher has seen the photos by which a fold would be judged.
    """
    begun = witness.of(store, options.begin_with) if options.begin_with else base if plan.recipe is None else ""
    found = [withheld.trained_on_by(store, begun)] if begun else []
    if plan.recipe is not None and plan.recipe.sampling.teacher:
        folder = Path(plan.recipe.sampling.teacher)
        own = folder.parent == store.models_folder.resolve()
        found.append(withheld.trained_on_by(store, folder.name if own else str(folder)))
        if options.folds and len(found[-1]):
            raise TrainError(
                "the recipe's teacher has seen the photos by which a fold would be judged",
                source=str(folder),
                next_step="leave out --folds, or name a teacher that learnt elsewhere",
            )
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))


def _recipe_of(store: Store, model: str) -> str:
    """The recipe by which a network of the store was trained.

    Raises:
        TrainError: it was not.
    """
    found = {card.name: card.extra.get("recipe") for card in models.listed(store.models_folder)}
    if not found.get(model):
        raise TrainError(
            f"'{model}' is no network that a recipe trained in this store",
            source=str(store.models_folder),
            next_step="choose one of `reid models list`, or leave out --from",
        )
    return str(found[model])
