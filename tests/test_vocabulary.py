"""Words: what people ask for, shipped lists, synonyms, templates; and text features that are remembered."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everymask.datasets import camvid, coco_classes
from everymask.encoders import text_memory
from everymask.encoders.text_memory import TextMemory, cache_folder, content_name
from everymask.encoders.tokenize import FolderTokenizer, HashTokenizer
from everymask.encoders.words import WordEncoder
from everymask.errors import CheckpointError, UsageError
from everymask.labels import Label, LabelMap
from everymask.vocabulary import SHIPPED, SINGLE, phrases, templates, words


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERYMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- words -----------------------------------------------------------------------------------------------------------


def test_shipped_lists_have_as_many_classes_as_they_say() -> None:
    counts = {name: len(table()) for name, table in SHIPPED.items()}
    assert counts == {name: int(name.rpartition("-")[2]) for name in counts}
    assert {"coco-171", "ade-150", "ade-847", "pascal-20", "pascal-59", "cityscapes-19", "camvid-11"} <= set(counts)
    assert SHIPPED["coco-171"]() is coco_classes.STUFF
    assert SHIPPED["cityscapes-19"]().names[:3] == ("road", "sidewalk", "building")
    assert SHIPPED["ade-150"]().names[7] == "bed"
    assert SHIPPED["ade-847"]().names[1] == "building"
    assert SHIPPED["ade-847"]()[1].synonyms == ("edifice",)


def test_entries_that_begin_alike_have_names_of_their_own() -> None:
    names = SHIPPED["ade-847"]().names
    assert {"screen", "silver screen", "bag", "traveling bag", "basketball hoop"} <= set(names)


def test_words_become_classes() -> None:
    table = words(["sofa, couch", "cat"])
    assert [(label.name, label.synonyms) for label in table] == [("sofa", ("couch",)), ("cat", ())]
    assert words(table) is table
    assert words("camvid-11").names == camvid.LABELS.names
    assert words(["cityscapes-19", "zebra crossing"]).names[-2:] == ("bicycle", "zebra crossing")
    assert words(["Straße", "猫", "🐈"]).names == ("Straße", "猫", "🐈")


def test_a_class_keeps_its_colour_in_every_list() -> None:
    assert words(["cat", "dog"])[0].color == words(["rug", "sofa", "cat"])[2].color


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "there is no class to look for: classes. Give one word or more."),
        (["cat", ""], "a class has no name: classes ('' is empty). Leave it out."),
        (["cat, "], "a class has no name: classes ('cat, ' is empty). Leave it out."),
        (["cat", "dog", "cat"], "a class is given twice: classes (cat). Give it once."),
        (["cat", "cat, kitten"], "a class is given twice: classes (cat). Give it once."),
        (["Cat", "cat"], "a class is given twice: classes (cat). Give it once."),
        ([3], "a class is a word: classes (3 is none)."),
        (
            "cat",
            "classes are a list of words: classes ('cat' is a text). Give a list, as in ['sofa', 'cat'], or one of: "
            "coco-171, coco-133, coco-80, ade-150, ade-847, pascal-20, pascal-59, cityscapes-19, camvid-11.",
        ),
    ],
)
def test_words_that_make_no_sense(classes: Sequence[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        words(classes)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (Label("sofa", synonyms=("couch",)), ("sofa", "couch")),
        (Label("wall-other-merged", synonyms=("wall",)), ("wall",)),
        (Label("t-shirt"), ("t-shirt",)),
        (Label("potted plant", synonyms=("pottedplant", "potted  plant")), ("potted plant",)),
        (Label("traffic_light"), ("traffic light",)),
    ],
)
def test_phrases_are_speech(label: Label, expected: tuple[str, ...]) -> None:
    assert phrases(label) == expected


def test_templates() -> None:
    assert templates(["single"]) == (SINGLE,)
    assert len(set(templates(["imagenet"]))) == 80
    assert all("{}" in text for text in templates(["imagenet"]))
    assert templates(["a {}", "single"]) == ("a {}", SINGLE)
    with pytest.raises(UsageError) as error:
        templates(["a photo"])
    assert error.value.message == (
        "a template has no place for the word: a photo. Say where the word comes in, as in 'a photo of a {}', or give "
        "single or imagenet."
    )
    with pytest.raises(UsageError, match="there is no template"):
        templates([])


# --- tokenizers ------------------------------------------------------------------------------------------------------


def test_hashes_take_any_text() -> None:
    tokenizer = HashTokenizer(100)
    ids = tokenizer(["cat", "Cat", "zwei Hunde", "猫 🐈", ""], 8)
    assert ids.shape == (5, 8)
    assert ((ids >= 0) & (ids < 100)).all()
    assert (ids[:, -1] == 99).all()
    assert (ids[0] == ids[1]).all()
    assert len(ids.unique(dim=0)) == 4
    assert (ids[:, :-1] < 99).all()


def test_a_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        HashTokenizer(100)(["cat", " ".join(["word"] * 300)], 16)
    assert error.value.message == (
        "a class has too many words: word word word word word word word word word word word wo... "
        "(301 tokens, the text tower reads 16). Shorten it."
    )


def test_a_missing_tokenizer_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        FolderTokenizer("google/nobody-has-this")(["cat"], 8)
    assert error.value.message.startswith("this model's tokenizer is not here: google/nobody-has-this (")
    assert (
        error.value.fix
        == "Run once: hf download google/nobody-has-this config.json tokenizer.json tokenizer_config.json"
    )
    with pytest.raises(CheckpointError, match=r"Copy tokenizer\.json and tokenizer_config\.json"):
        FolderTokenizer(tmp_path)(["cat"], 8)


# --- features --------------------------------------------------------------------------------------------------------


class Tower(nn.Module):
    """Means of embeddings: a text tower as small as can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(1000, 6)

    def texts(self, ids: Tensor) -> Tensor:
        return self.embedding(ids).mean(1)

    def text_parts(self) -> nn.ModuleList:
        return nn.ModuleList([self.embedding])


def encoder(names: Sequence[str] = ("{}",), ensemble: str = "mean", **options: bool) -> WordEncoder:
    return WordEncoder(names, ensemble, 16, HashTokenizer(1000), **options)  # type: ignore[arg-type]


@torch.no_grad()
def features(words_of: WordEncoder, tower: Tower, names: Sequence[str]) -> Tensor:
    return words_of.features(tower, words(names), torch.device("cpu"))


def test_synonyms_and_templates_are_averaged() -> None:
    tower = Tower()

    def one(text: str) -> Tensor:
        return F.normalize(tower.texts(HashTokenizer(1000)([text], 16)), dim=-1)

    found = features(encoder(("a {}", "the {}"), "channels"), tower, ["sofa, couch", "cat"])
    assert found.shape == (2, 2, 6)
    for p, template in enumerate(("a", "the")):
        expected = F.normalize((one(f"{template} sofa") + one(f"{template} couch")) / 2, dim=-1)
        torch.testing.assert_close(found[0, p], expected[0])
        torch.testing.assert_close(found[1, p], one(f"{template} cat")[0])
    mean = features(encoder(("a {}", "the {}")), tower, ["sofa, couch", "cat"])
    torch.testing.assert_close(mean, F.normalize(found.mean(1, keepdim=True), dim=-1))
    first = features(encoder(first_only=True), tower, ["sofa, couch"])
    torch.testing.assert_close(first[0], one("sofa"))


def test_only_new_words_are_encoded_and_none_is_stale() -> None:
    tower, remembering = Tower(), encoder()
    first = features(remembering, tower, ["cat", "dog"])
    assert remembering.memory.encoded == 2
    torch.testing.assert_close(features(remembering, tower, ["dog", "cat"]), first.flip(0))
    assert remembering.memory.encoded == 2
    third = features(remembering, tower, ["dog", "rug"])
    assert remembering.memory.encoded == 3
    torch.testing.assert_close(third, features(encoder(), tower, ["dog", "rug"]))
    with torch.no_grad():
        tower.embedding.weight.add_(1)
    changed = features(remembering, tower, ["dog", "rug"])
    assert remembering.memory.encoded == 5
    torch.testing.assert_close(changed, features(encoder(), tower, ["dog", "rug"]))
    assert (changed - third).abs().max() > 0.1


def test_while_the_tower_learns_nothing_is_remembered() -> None:
    tower, remembering = Tower(), encoder()
    for _ in range(2):
        found = remembering.features(tower, words(["cat"]), torch.device("cpu"))
        assert found.requires_grad
    assert remembering.memory.encoded == 0
    tower.requires_grad_(False)
    assert not remembering.features(tower, words(["cat"]), torch.device("cpu")).requires_grad


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_memory, "MOST_BYTES", 3 * 6 * 4)
    tower, remembering = Tower(), encoder()
    for names in (["a", "b"], ["c", "d"], ["c", "d", "e", "f"]):
        torch.testing.assert_close(features(remembering, tower, names), features(encoder(), tower, names))
        assert len(remembering.memory._found) <= 4


MANY = [f"word{n}" for n in range(80)]


def test_long_lists_are_kept_on_disk(own_cache: Path) -> None:
    tower, first, second = Tower(), encoder(), encoder()
    expected = features(first, tower, MANY)
    assert len(list((own_cache / "texts").iterdir())) == 1
    torch.testing.assert_close(features(second, tower, MANY), expected, rtol=0, atol=0)
    assert (first.memory.encoded, second.memory.encoded) == (80, 0)
    features(encoder(), tower, ["cat"])
    assert len(list((own_cache / "texts").iterdir())) == 1


@pytest.mark.parametrize("change", ["weights", "words", "template", "synonyms", "ensemble"])
def test_files_are_of_one_tower_and_list(own_cache: Path, change: str) -> None:
    tower = Tower()
    features(encoder(), tower, MANY)
    other, names, prompts = copy.deepcopy(tower), list(MANY), ("{}",)
    if change == "weights":
        other.embedding.weight.data[0, 0] += 1e-6
    elif change == "words":
        names[5] = "else"
    elif change == "template":
        prompts = ("the {}",)
    elif change == "synonyms":
        names = [*MANY[:-2], f"{MANY[-2]}, {MANY[-1]}"]  # The same ids in all.
    again = encoder(prompts, "channels" if change == "ensemble" else "mean")
    found = features(again, other, names)
    assert again.memory.encoded == len(names)
    assert len(list((own_cache / "texts").iterdir())) == 2
    assert len(found) == len(names)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_damaged_files_are_made_again(own_cache: Path, content: bytes | None) -> None:
    tower = Tower()
    expected = features(encoder(), tower, MANY)
    (path,) = (own_cache / "texts").iterdir()
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    torch.testing.assert_close(features(encoder(), tower, MANY), expected)
    assert features(second := encoder(), tower, MANY) is not None
    assert second.memory.encoded == 0


def test_a_cache_that_cannot_be_written_is_no_error(own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    assert len(features(encoder(), Tower(), MANY)) == 80


def test_old_files_go(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_memory, "MOST_FILES", 2)
    tower = Tower()
    for n in range(4):
        features(encoder(), tower, [*MANY, f"more{n}"])
    assert len(list((own_cache / "texts").iterdir())) == 2


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("EVERYMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "everymask"


def test_names_of_weights_are_of_their_content() -> None:
    tower = Tower()
    assert content_name(tower) == content_name(copy.deepcopy(tower))
    halved = copy.deepcopy(tower).half()
    assert content_name(halved) != content_name(tower)
    one, two = nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 2)
    two.load_state_dict(one.state_dict())
    assert content_name(one) == content_name(copy.deepcopy(one).eval()) != content_name(two)
    assert isinstance(copy.deepcopy(TextMemory()), TextMemory)


def test_a_table_of_5000_classes_is_made_at_once() -> None:
    assert len(LabelMap.from_names(f"class {n}" for n in range(5000))) == 5000
