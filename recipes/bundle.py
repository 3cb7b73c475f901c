"""Turn a training run into bundled weights: half precision, measured scores, licence and credits in its card.

    python recipes/bundle.py runs/hybrid-pets recipes/hybrid-pets.yaml --data ../shared/data

The scores in the card are those of the stored half-precision weights, on data the run never saw.
"""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import yaml

import everymask as em
from everymask.checkpoint import BUNDLED, find_model, read_card, save
from everymask.datasets import open_dataset
from everymask.files import write_text

KEPT = ("foreground_iou", "foreground_dice", "miou", "images")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets of the recipe")
    options = parser.parse_args()
    recipe = yaml.safe_load(options.recipe.read_text())
    folder = bundle(options.run, recipe, options.data)
    shutil.copy(options.run / "log.jsonl", options.recipe.with_suffix(".log.jsonl"))
    print(folder, f"{(folder / 'model.safetensors').stat().st_size / 2**20:.1f} MiB")


def bundle(run: Path, recipe: dict[str, Any], data: Path) -> Path:
    """Write the bundled model of a recipe from the best checkpoint of `run`; returns its folder."""
    model = em.load(run)
    trained = read_card(find_model(run))
    extra = {name: recipe[name] for name in ("licence", "credits", "notes", "data", "trained_on")}
    extra |= {"recipe": trained["recipe"], "step": trained["step"]}
    model.config = type(model.config)(**{**vars(model.config), "image_side": recipe["image_side"]})
    folder = save(model, BUNDLED / recipe["name"], extra=extra, half=True)
    scores = {name: measure(folder, data / name) for name in recipe["data"]}
    for name, row in scores.items():
        print(name, row)
    save(em.load(folder), folder, extra={**extra, "scores": scores}, half=True)
    write_text(folder / "CARD.md", card_text(recipe, scores))
    return folder


def card_text(recipe: dict[str, Any], scores: dict[str, dict[str, float]]) -> str:
    """The model card: the recipe's words and the measured scores."""
    rows = [
        f"| {name} | " + " | ".join(f"{row[key]:g}" if key in row else "-" for key in KEPT) + " |"
        for name, row in scores.items()
    ]
    table = [f"| test split | {' | '.join(KEPT)} |", "|---" * (len(KEPT) + 1) + "|", *rows]
    lists = [f"- {line}" for line in recipe["notes"]], [f"- {line}" for line in recipe["credits"]]
    head = [
        f"# {recipe['name']}",
        "",
        f"Licence of the weights: {recipe['licence']}. Trained on {recipe['trained_on']}.",
        "",
    ]
    return "\n".join([*head, *table, "", "## Notes", "", *lists[0], "", "## Credits", "", *lists[1], ""])


def measure(folder: Path, root: Path) -> dict[str, float]:
    """Test scores of a stored model; what cannot be measured (the boundary of trimaps is void) is left out."""
    scores = em.evaluate(em.load(folder), open_dataset(root, "test"))
    return {name: round(scores[name], 4) for name in KEPT if math.isfinite(scores[name])}


if __name__ == "__main__":
    main()
