"""What the source as a whole must keep to: one-way imports, public names, nothing dangerous, short documented files.

The source is parsed, not imported. Every check is a function that returns its complaints, so that each is also tried on
small bad sources: a check that cannot fail protects nothing.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import everymask

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src"
ROOT = "everymask"

# A module may import from its own layer and from those above it in this list. A folder counts as one name.
LAYERS = [
    {"errors", "files", "manifest", "interrupts", "chance", "processes", "labels", "types", "recipe"},
    {"image", "transforms", "boxes", "losses", "upsample", "postprocess", "metrics", "prompts", "layers"}
    | {"affine", "resample", "augment", "prompt_files", "prompt_reader", "user_prompts", "features"}
    | {"clicks", "prompt_criterion", "prompted", "automatic", "frames", "feature_store", "lessons"}
    | {"drawing", "maps", "visualize", "compare", "charts", "save", "result", "model", "heatmaps"},
    {"matcher", "criterion", "class_criterion", "vocabulary", "encoders", "datasets"},
    {"models"},
    {"predict", "explain", "published", "checkpoint", "run_folder", "size_limit", "trace", "tiling"},
    {"evaluate", "report", "train", "overfit", "gallery", "doctor_text", "doctor_page", "demo", "export", "cluster"}
    | {"prompted_evaluation", "explain_page", "training_run", "run_record", "sharding"},
    {"cli", "cli_data", "cli_photos", "cli_prompts", "tables", "web", "__main__"},
]
MAX_LINES = 500

Sources = dict[str, str]  # path inside src/everymask -> text


def read_sources() -> Sources:
    package = SOURCE / ROOT
    return {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}


def module_name(path: str) -> str:
    return f"{ROOT}/{path}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# --- imports -------------------------------------------------------------------------------------------------------


def layer_of(module: str) -> int | None:
    """Index into LAYERS; the root package comes after them all, because only the outermost code may use it."""
    if module == ROOT:
        return len(LAYERS) - 1
    name = module.split(".")[1]
    return next((index for index, layer in enumerate(LAYERS) if name in layer), None)


def imported_modules(path: str, text: str, modules: set[str]) -> Iterator[str]:
    """Every module of ours that is imported anywhere in the text, inside functions and type-checking blocks too."""
    package = module_name(path) if path.endswith("__init__.py") else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = from_base(node, package)
            # `from a import b` means the module a.b where there is one, else a name in a.
            targets = [full if (full := f"{base}.{alias.name}") in modules else base for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            targets = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        yield from (target for target in targets if target == ROOT or target.startswith(f"{ROOT}."))


def from_base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def import_graph(sources: Sources) -> dict[str, set[str]]:
    modules = {module_name(path) for path in sources}
    return {module_name(path): set(imported_modules(path, text, modules)) for path, text in sources.items()}


def layer_faults(sources: Sources) -> list[str]:
    graph = import_graph(sources)
    faults = [
        f"{name} is in no layer: add {name.split('.')[1]!r} to LAYERS in tests/test_architecture.py"
        for name in graph
        if layer_of(name) is None
    ]
    for name, targets in graph.items():
        if name == ROOT:
            continue
        for target in sorted(targets):
            here, there = layer_of(name), layer_of(target)
            if here is not None and there is not None and there > here:
                faults.append(f"{name} imports {target}, which is in a later layer")
    return faults


def model_faults(sources: Sources) -> list[str]:
    """A model is one file: what two of them need belongs into layers or encoders."""
    return [
        f"{name} imports {target}: models never import each other"
        for name, targets in import_graph(sources).items()
        for target in sorted(targets)
        if f"{name}.".startswith(f"{ROOT}.models.") and f"{target}.".startswith(f"{ROOT}.models.") and name != target
    ]


def cycle_faults(sources: Sources) -> list[str]:
    graph = {name: targets - {name} for name, targets in import_graph(sources).items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        # Edges point from a module to what it imports; graphlib reports them the other way round.
        return ["import cycle: " + " -> ".join(reversed(error.args[1]))]
    return []


def eager_faults(text: str) -> list[str]:
    """Imports that run when the root package is imported: all but those in functions and type-checking blocks."""
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in eager_nodes(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom) and not set(top_names(node)) <= sys.stdlib_module_names
    ]


def eager_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                yield from (other, *eager_nodes(other))
            continue
        yield node
        yield from eager_nodes(node)


def top_names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [ROOT if node.level else (node.module or "").split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names]


# --- dangerous calls, length, machine paths --------------------------------------------------------------------------


def danger_faults(text: str) -> list[str]:
    tree = ast.parse(text)
    aliases = import_aliases(tree)
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            faults += [f"line {node.lineno}: {fault}" for fault in call_faults(node, aliases)]
    return faults


def import_aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name, for what was imported under another name or out of a module."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return aliases


def call_faults(call: ast.Call, aliases: dict[str, str]) -> Iterator[str]:
    first, dot, rest = ast.unparse(call.func).partition(".")
    name = aliases.get(first, first) + dot + rest
    literals = {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}
    # A value that is not written out could be anything, so it counts as on.
    given = {k.arg: literals.get(k.arg, True) for k in call.keywords if k.arg}
    if given.get("shell"):
        yield "shell=True"
    if given.get("allow_pickle"):
        yield "allow_pickle=True"
    if name in {"pickle.load", "pickle.loads", "pickle.Unpickler"}:
        yield name
    if name == "torch.load" and literals.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name in {"eval", "exec", "builtins.eval", "builtins.exec"}:
        yield f"{name}()"


def form_faults(text: str) -> list[str]:
    faults = []
    if not (ast.get_docstring(ast.parse(text)) or "").strip():
        faults.append("no module docstring")
    if (lines := len(text.splitlines())) > MAX_LINES:
        faults.append(f"{lines} lines, more than {MAX_LINES}: split it")
    return faults


def path_faults(text: str) -> list[str]:
    pattern = re.compile(r"/(work|farm|root)/")
    return [
        f"line {number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)
    ]


def repository_texts() -> Iterator[tuple[str, str]]:
    """Every text file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield name, content.decode("utf-8", errors="replace")


# --- the checks on the real source -----------------------------------------------------------------------------------


def test_imports_go_one_way() -> None:
    assert layer_faults(read_sources()) == []


def test_models_never_import_each_other() -> None:
    assert model_faults(read_sources()) == []


def test_no_import_cycle() -> None:
    assert cycle_faults(read_sources()) == []


def test_root_imports_lazily() -> None:
    assert eager_faults((SOURCE / ROOT / "__init__.py").read_text("utf-8")) == []


@pytest.mark.parametrize("name", everymask.__all__)
def test_public_name_is_importable(name: str) -> None:
    assert getattr(everymask, name).__name__ == name
    assert name in dir(everymask)


def test_unknown_name_says_so() -> None:
    with pytest.raises(AttributeError, match="module 'everymask' has no attribute 'nonsense'"):
        everymask.nonsense  # noqa: B018


def test_every_public_name_has_a_home() -> None:
    assert sorted(everymask.__all__) == sorted(everymask._HOME)


def test_import_is_light() -> None:
    code = "import everymask, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "transformers", "PIL"} & set(json.loads(run.stdout)) == set()


@pytest.mark.parametrize("name", ["predict", "train", "evaluate"])
@pytest.mark.parametrize(
    "first",
    [
        "importlib.import_module('everymask.{name}')",
        "import everymask.{name}",
        "from everymask.{name} import {name}",
        "everymask.{name}; del sys.modules['everymask.{name}']; import everymask.{name}",
    ],
)
def test_function_wins_over_submodule_of_the_same_name(name: str, first: str, tmp_path: Path) -> None:
    # Empty stand-ins for the submodules show what the package itself does, in a moment and without torch.
    package = tmp_path / ROOT
    package.mkdir()
    (package / "__init__.py").write_text((SOURCE / ROOT / "__init__.py").read_text("utf-8"), "utf-8")
    (package / f"{name}.py").write_text(f"def {name}(): return 'called'\n", "utf-8")
    code = f"""
import importlib, sys, everymask
{first.format(name=name)}
assert everymask.{name}() == "called"
from everymask import {name}
assert {name}() == "called"
assert type(sys.modules["everymask.{name}"]).__name__ == "module"
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["predict", "train", "evaluate"])
def test_real_submodule_does_not_replace_the_function(name: str) -> None:
    module = importlib.import_module(f"everymask.{name}")
    assert getattr(everymask, name) is getattr(module, name)


@pytest.mark.parametrize("check", [danger_faults, form_faults])
def test_each_source_file(check: Callable[[str], list[str]]) -> None:
    faults = {name: found for name, text in read_sources().items() if (found := check(text))}
    assert faults == {}


def test_no_machine_path_anywhere() -> None:
    faults = {name: found for name, text in repository_texts() if (found := path_faults(text))}
    assert faults == {}


# --- each check can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "target"),
    [
        ("types.py", "from everymask.image import read", "everymask.image"),
        ("types.py", "def f():\n    import everymask.image", "everymask.image"),
        ("types.py", "from . import image", "everymask.image"),
        ("types.py", "from .image import read", "everymask.image"),
        ("types.py", "from everymask import image", "everymask.image"),
        ("types.py", "import_module('everymask.image')", "everymask.image"),
        ("types.py", "importlib.import_module('everymask.image')", "everymask.image"),
        ("train.py", "if TYPE_CHECKING:\n    import everymask.cli", "everymask.cli"),
        ("layers/mlp.py", "from ..models import hybrid", "everymask.models.hybrid"),
        ("layers/__init__.py", "from ..models.hybrid import x", "everymask.models.hybrid"),
        ("models/detr.py", "from everymask import predict", "everymask"),
        ("models/detr.py", "import everymask", "everymask"),
    ],
)
def test_wrong_direction_is_found(path: str, text: str, target: str) -> None:
    others = {"__init__.py": "", "image.py": "", "models/hybrid.py": ""}
    expected = f"{module_name(path)} imports {target}, which is in a later layer"
    assert layer_faults(others | {path: text}) == [expected]


@pytest.mark.parametrize("path", ["gadget.py", "gadget/__init__.py"])
def test_file_without_a_layer_is_found(path: str) -> None:
    expected = "everymask.gadget is in no layer: add 'gadget' to LAYERS in tests/test_architecture.py"
    assert layer_faults({path: ""}) == [expected]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("image.py", "from everymask.types import Result"),
        ("layers/mlp.py", "from .fpn import x"),
        ("cli.py", "import everymask as em\nfrom everymask import predict"),
        ("web/app.py", "import everymask.train"),
        ("__init__.py", "def f():\n    from everymask.cli import main"),
        ("types.py", "import numpy, everymaskish\nfrom torch import nn"),
    ],
)
def test_right_direction_passes(path: str, text: str) -> None:
    assert layer_faults({"types.py": "", "layers/fpn.py": "", path: text}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from everymask.models.detr import Model",
        "from everymask.models import detr",
        "from . import detr",
        "def f():\n    from .detr import Model",
        "from everymask.models import create_model",
    ],
)
def test_model_that_imports_a_model_is_found(text: str) -> None:
    sources = {"models/__init__.py": "", "models/detr.py": "", "models/hybrid.py": text}
    (fault,) = model_faults(sources)
    assert fault.endswith("models never import each other")


def test_model_may_import_layers() -> None:
    assert model_faults({"models/hybrid.py": "from everymask.layers.fpn import FPN"}) == []


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"image": ["losses"], "losses": ["image"]}, {"everymask.image", "everymask.losses"}),
        ({"image": ["losses"], "losses": ["metrics"], "metrics": ["image"]}, {"everymask.image", "everymask.metrics"}),
        ({"image": ["losses", "metrics"], "losses": ["metrics"], "metrics": []}, None),
    ],
)
def test_import_cycle_is_found(imports: dict[str, list[str]], expected: set[str] | None) -> None:
    sources = {f"{name}.py": "".join(f"from . import {t}\n" for t in ts) for name, ts in imports.items()}
    faults = cycle_faults(sources)
    if expected is None:
        assert faults == []
    else:
        (fault,) = faults
        path = fault.removeprefix("import cycle: ").split(" -> ")
        assert expected <= set(path)
        graph = import_graph(sources)
        assert all(after in graph[before] for before, after in pairwise(path))


@pytest.mark.parametrize(
    ("text", "lazy"),
    [
        ("import torch", False),
        ("from everymask.predict import predict", False),
        ("from .predict import predict", False),
        ("try:\n    import numpy\nexcept ImportError:\n    pass", False),
        ("class A:\n    import numpy", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import numpy", False),
        ("import sys\nfrom types import ModuleType", True),
        ("if TYPE_CHECKING:\n    from everymask.types import Result", True),
        ("def __getattr__(name):\n    from everymask.predict import predict", True),
    ],
)
def test_eager_import_is_found(text: str, lazy: bool) -> None:
    assert (eager_faults(text) == []) is lazy


@pytest.mark.parametrize(
    "text",
    [
        "subprocess.run('ls', shell=True)",
        "subprocess.run('ls', shell=flag)",
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import load\nload(f)",
        "from pickle import load as read\nread(f)",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=flag)",
        "from torch import load\nload(f)",
        "np.load(f, allow_pickle=True)",
        "eval('1')",
        "def f():\n    exec('1')",
    ],
)
def test_danger_is_found(text: str) -> None:
    assert len(danger_faults(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "np.load(f)",
        "np.load(f, allow_pickle=False)",
        "subprocess.run(['ls'], shell=False)",
        "json.load(f)",
        "def load(f): ...\nload(f)",
        "# eval(x) and shell=True in a comment\n'torch.load(x)'",
    ],
)
def test_harmless_calls_pass(text: str) -> None:
    assert danger_faults(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", ["no module docstring"]),
        ("", ["no module docstring"]),
        ('"""  """', ["no module docstring"]),
        ('"""Doc."""\n' + "x = 1\n" * 500, ["501 lines, more than 500: split it"]),
        ('"""Doc."""\n' + "x = 1\n" * 499, []),
    ],
)
def test_form_fault_is_found(text: str, expected: list[str]) -> None:
    assert form_faults(text) == expected


@pytest.mark.parametrize("name", ["work", "farm", "root"])
def test_machine_path_is_found(name: str) -> None:
    assert path_faults(f"fine\nopen('/{name}/x.png')") == [f"line 2: open('/{name}/x.png')"]


def test_ordinary_path_passes() -> None:
    assert path_faults("framework/x, ../shared/data, C:/Users/me, network/roots/") == []
