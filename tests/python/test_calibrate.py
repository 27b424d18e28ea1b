"""pywina calibrate: that it lowers what it minimises, stores it, resumes, and refuses nonsense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tinycheckpoint import CONFIGS, TOKENS, write_checkpoint
from tinymodel import ROLES

import pywina
from pywina.calibrate.objective import Objective
from pywina.calibrate.run import Settings, calibrate
from pywina.calibrate.search import Shape, vertex
from pywina.cli import main
from pywina.eval.windows import cut_windows, log_probabilities
from pywina.tuning import Tuning

RNG = np.random.default_rng(2)
WORDS = "the in and there an of on a woman at sea is seen with all to rest far over".split()
TEXT = " ".join(RNG.choice(WORDS, 3000))
QUICK = {"windows": 2, "size": 64}
_NO_GRAPH = ("phi3", "phi3-window", "mixtral")  # nor any other mixture


@pytest.fixture(scope="module")
def path(write_model: Callable[..., Path]) -> Path:
    return write_model(architecture="qwen2", n_layer=3, types=dict.fromkeys(ROLES, "Q8_0"))


def test_a_search_lowers_the_divergence(path: Path, tmp_path: Path) -> None:
    with pywina.load(path, n_threads=1) as model:
        settings = Settings(targets=(0.4, 0.6), **QUICK)
        result = calibrate(model, TEXT, settings, tmp_path / "log.json")
        objective = Objective(model, cut_windows(model, TEXT, 64, 2))
        for target in settings.targets:
            tuned = np.mean(objective(result.tuning, pywina.Sparsity(target)))
            profile = np.mean(objective(None, pywina.Sparsity(target)))
            assert tuned <= profile + 1e-3
            model.logits(list(range(40, 80)), sparsity=target)
            assert model.stats.kept_fraction == pytest.approx(1 - target, abs=0.01)
        start = Shape(exponent=0.0)
        first = np.mean(json.loads((tmp_path / "log.json").read_text())["results"][start.key(0.6)])
        best = min(v for k, v in result.notes["divergence"].items() if k.startswith("0.6:"))
        assert best < first


def test_the_divergence_is_that_of_the_distributions(path: Path) -> None:
    with pywina.load(path, n_threads=1) as model:
        windows = cut_windows(model, TEXT, 64, 1)
        (value,) = Objective(model, windows)(None, pywina.Sparsity(0.5))
        dense = log_probabilities(model, windows[0], pywina.Sparsity(), first=16).astype(float)
        own = log_probabilities(model, windows[0], pywina.Sparsity(0.5), first=16).astype(float)
        assert value == pytest.approx((np.exp(dense) * (dense - own)).sum(1).mean(), rel=0.01)
        (zero,) = Objective(model, windows)(None, pywina.Sparsity(0.0))
        assert abs(zero) < 1e-4 < value


def test_a_stopped_calibration_goes_on(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    with pywina.load(path, n_threads=1) as model:
        settings = Settings(**QUICK)
        steps = []

        def stop(text: str) -> None:
            steps.append(text)
            if len(steps) == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(model, TEXT, settings, log, stop)
        assert len(json.loads(log.read_text())["results"]) == 4
        resumed = calibrate(model, TEXT, settings, log)
        fresh = calibrate(model, TEXT, settings, tmp_path / "other.json")
        np.testing.assert_array_equal(resumed.tuning.kept, fresh.tuning.kept)
        with pytest.raises(pywina.ArgumentError, match="another calibration"):
            calibrate(model, TEXT, Settings(targets=(0.6,), **QUICK), log)
        log.write_text("{}")
        with pytest.raises(pywina.ArgumentError, match="cannot be resumed"):
            calibrate(model, TEXT, settings, log)


def test_uniform_and_thresholds_in_a_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    target = tmp_path / "out.gguf"
    arguments = ["calibrate", str(path), "-f", str(tmp_path / "text.txt"), "-o", str(target)]
    arguments += [
        "--allocate",
        "uniform",
        "-t",
        "1",
        "--windows",
        "3",
        "--size",
        "128",
        "--thresholds",
    ]
    assert main([*arguments, "--target", "0.3,0.6"]) == 0
    with pywina.load(target, n_threads=1) as model, pywina.load(path, n_threads=1) as plain:
        ids = model.tokenize(TEXT)[2000:2200]
        uniform = pywina.Sparsity(0.6, budget="uniform", exponent=1.0)
        np.testing.assert_array_equal(
            model.logits(ids, sparsity=0.6), plain.logits(ids, sparsity=uniform)
        )
        for sparsity in (0.3, 0.6):
            model.logits(ids, sparsity=pywina.Sparsity(sparsity, select="threshold"))
            assert model.stats.kept_fraction == pytest.approx(1 - sparsity, abs=0.04)
    tuning = Tuning.load(target.with_suffix(".json"))
    assert tuning.kept.shape == (2, 3, 4)
    assert tuning.thresholds is not None and (np.diff(tuning.thresholds, axis=0) > 0).all()


def test_the_vertex_of_a_parabola() -> None:
    assert vertex([(x - 0.3) ** 2 for x in (1, 0, -1)]) == pytest.approx(0.3)
    assert vertex([1.0, 2.0, 3.0]) == 0 and vertex([0.0, 1.0, 0.0]) == 0  # no least value inside
    assert vertex([0.0, 1.0, 2.1]) == 1


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_gradients_and_greedy(
    write_model: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.norms import loss_norms

    path = write_model(architecture=architecture, tied=False)
    with pywina.load(path, n_threads=1) as model:
        graph, ids = Graph(model), cut_windows(model, TEXT, 48, 1)[0]
        logs = log_probabilities(model, ids, pywina.Sparsity(), first=0)
        loss = float(graph.loss(ids, lambda layer, group, x: x).detach())
        assert loss == pytest.approx(-logs[np.arange(47), ids[1:]].sum(), rel=1e-3)

        # One input of one group moved by a little: the loss moves by its gradient.
        found = loss_norms(graph, [ids[:2]])  # one token, so that norms are slopes
        assert all(np.square(n).mean(axis=1) == pytest.approx(1, abs=1e-3) for n in found.values())

        def loss_with(by: float, index: int) -> float:
            def hook(layer: int, group: str, x: object) -> object:
                if (layer, group) == (1, "down"):
                    assert isinstance(x, torch.Tensor)
                    x = x.clone()
                    x[:, index] += by
                return x

            return float(graph.loss(ids[:2], hook).detach())

        slopes = [abs(loss_with(0.02, i) - loss_with(-0.02, i)) for i in range(128)]
        assert np.corrcoef(slopes, found["down"][1])[0, 1] > 0.999

        settings = Settings(targets=(0.3, 0.5), allocate="greedy", norms="loss", **QUICK)
        result = calibrate(model, TEXT, settings, tmp_path / "log.json")
        kept = result.tuning.kept
        sizes = np.array([64 * (64 + 32 + 32), 64 * 64, 2 * 64 * 128, 64 * 128])
        np.testing.assert_allclose(kept @ (sizes / sizes.sum()), [[0.7] * 2, [0.5] * 2], atol=1e-5)
        assert (kept[1] <= kept[0] + 1e-6).all() and kept.std() > 0.02
        assert set(result.tuning.norms) == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize(
    "wrong",
    [{"targets": ()}, {"targets": (0.5, 0.4)}, {"targets": (1.0,)}, {"allocate": "best"},
     {"norms": "l1"}, {"norms": "fitted"}, {"windows": 0}, {"size": 8}],
)  # fmt: skip
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(pywina.ArgumentError):
        Settings(**wrong)


def test_wrong_arguments(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("short")
    for out, extra, message in (
        ("out.bin", [], "must end in"),
        ("out.json", ["--target", "a"], "no list"),
        ("out.json", [], "one window needs"),
    ):
        arguments = ["calibrate", str(path), "-f", str(text), "-o", str(tmp_path / out), *extra]
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_torch_and_the_library_measure_the_same_divergence(path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pip install 'pywina[calibrate]')")
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import TorchObjective

    with pywina.load(path, n_threads=1, backend="cpu") as model:
        windows = cut_windows(model, TEXT, 64, 3)
        ours, torchs = Objective(model, windows), TorchObjective(model, Graph(model), windows)
        for rule in (pywina.Sparsity(0.0), pywina.Sparsity(0.3, exponent=0.0)):
            np.testing.assert_allclose(ours(None, rule), torchs(None, rule), rtol=0.05, atol=1e-4)
        tuning = Tuning(np.array([0.5], np.float32), Shape(down=2.0).kept(3))
        rule = pywina.Sparsity(0.5, exponent=1.0)
        np.testing.assert_allclose(ours(tuning, rule), torchs(tuning, rule), rtol=0.1)


def test_blocks_get_offsets_of_their_own(path: Path, tmp_path: Path) -> None:
    with pywina.load(path, n_threads=1) as model:
        settings = Settings(allocate="block", windows=3, size=64)
        result = calibrate(model, TEXT, settings, tmp_path / "log.json")
        (shape,) = result.notes["shapes"]
        assert len(shape["blocks"]) == model.info.n_layer
        values = result.notes["divergence"]
        own = [value for key, value in values.items() if "blocks=" in key]
        assert len(own) == 2 * model.info.n_layer
        if any(shape["blocks"]):
            assert min(own) < min(value for key, value in values.items() if "blocks=" not in key)
        else:
            assert min(own) > 0


@pytest.fixture(
    scope="module", params=sorted(n for n in CONFIGS if "moe" not in n and n not in _NO_GRAPH)
)
def family_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    source = write_checkpoint(folder / "checkpoint", request.param)
    assert main(["convert", str(source), str(folder / "model.gguf"), "--type", "F32"]) == 0
    return folder / "model.gguf"


def test_the_graph_of_every_family(family_path: Path) -> None:
    """Logits of the torch graph against the library's, over a text longer than any window; two
    texts stacked give what they give one by one."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import TorchSparse

    with pywina.load(family_path, n_ctx=128, n_threads=1, backend="cpu") as model:
        graph = Graph(model)
        sparse = TorchSparse(model, graph)
        ids = [*TOKENS, 7]
        wanted = log_probabilities(model, ids, pywina.Sparsity(), first=0)
        np.testing.assert_allclose(sparse.logs(ids, 0).numpy(), wanted, atol=0.02)
        sparse.use(None, pywina.Sparsity(0.5, exponent=1.0))
        other = [*TOKENS[::-1], 7]
        both = sparse.logs([ids, other], 0)
        torch.testing.assert_close(both[0], sparse.logs(ids, 0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(both[1], sparse.logs(other, 0), atol=1e-4, rtol=1e-4)


def test_what_the_graph_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate.graph import Graph

    source = write_checkpoint(tmp_path / "checkpoint", "phi3")
    assert main(["convert", str(source), str(tmp_path / "model.gguf"), "--type", "F32"]) == 0
    with (
        pywina.load(tmp_path / "model.gguf", n_ctx=32, n_threads=1) as model,
        pytest.raises(pywina.UnsupportedError, match="phi3"),
    ):
        Graph(model)


def test_descent(path: Path, tmp_path: Path) -> None:
    """The slope that gradients give is the slope of the objective; budgets get better, and take
    the bytes that were asked for."""
    pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate.descent import Descent
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import TorchObjective

    with pywina.load(path, n_threads=1, backend="cpu") as model:
        windows = cut_windows(model, TEXT, 64, 16)
        both = TorchObjective(model, Graph(model), windows)
        descent = Descent(both, both, {}, np.zeros(4, np.float32), 0.5, lambda key, find: find())
        odds = np.zeros((3, 4))
        worth, error = descent.worth(odds)
        assert worth.shape == error.shape == (3, 4) and (error > 0).all()

        # A tenth more of the inputs of one group, the others as they were.
        def with_more(layer: int, group: str, by: int) -> float:
            both.sparse.use(descent._tuning(odds), pywina.Sparsity(0.5))
            both.sparse.keep[layer, group] += by
            values = []
            for window, dense in zip(windows, both._dense, strict=True):
                own = both.sparse.logs([window], 16)
                values.append(float(both.per_token([window], own, dense).mean()))
            return float(np.mean(values))

        slopes = []
        for layer in range(3):
            for group, width in (("qkv", 64), ("o", 64), ("gate_up", 64), ("down", 128)):
                by = width // 16
                slopes.append((with_more(layer, group, -by) - with_more(layer, group, by)) / by / 2)
        assert np.corrcoef(slopes, worth.ravel())[0, 1] > 0.6
        assert 0.2 < worth.sum() / np.sum(slopes) < 1.2  # what is kept elsewhere moves, too

        settings = Settings(
            targets=(0.4, 0.6), allocate="descent", norms="loss", windows=8, size=64
        )
        result = calibrate(model, TEXT, settings, tmp_path / "log.json")
        assert result.tuning.kept.shape == (2, 3, 4) and len(result.tuning.norms) == 4
        check = TorchObjective(model, both.graph, windows[:8])
        library = Objective(model, windows[:8])
        for target in settings.targets:
            tuned = np.mean(check(result.tuning, pywina.Sparsity(target)))
            assert tuned < np.mean(check(None, pywina.Sparsity(target)))
            found = np.mean(library(result.tuning, pywina.Sparsity(target)))
            assert found == pytest.approx(tuned, rel=0.1)  # its exponents by group, too
            model.set_tuning(result.tuning)
            model.logits(list(range(40, 80)), sparsity=target)
            assert model.stats.kept_fraction == pytest.approx(1 - target, abs=0.01)


def test_fitted_norms(path: Path, tmp_path: Path) -> None:
    """Inputs that are worth more at the edge move up; the result is better than what it began
    with, and what is not known stays."""
    pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate.fit import NormFit, _shrunk
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import TorchObjective

    # Two parts: an input that is worth twice the mean in both, one that nobody saw, one unsure.
    one, two = np.array([2.0, 0.0, 4.0, 1.0]), np.array([2.0, 0.0, -3.0, 1.0])
    hits = np.array([1.0, 0.0, 1.0, 2.0])
    moved = _shrunk(one + two, 2 * hits, one**2 + two**2, one * hits + two * hits, 2 * hits**2)
    assert moved[0] > 0.9 and moved[1] == 0 and abs(moved[2]) < 0.2 and moved[3] < -0.3

    with pywina.load(path, n_threads=1, backend="cpu") as model:
        windows = cut_windows(model, TEXT, 64, 24)
        graph = Graph(model)
        decides, gradients = (
            TorchObjective(model, graph, part) for part in (windows[:12], windows[12:])
        )
        kept = np.full((2, 3, 4), 0.5, np.float32)
        targets = np.array([0.4, 0.6], np.float32)
        fit = NormFit(decides, gradients, targets, kept, lambda key, find: find())
        start = {
            group: np.zeros((3, model.width(group))) for group in ("qkv", "o", "gate_up", "down")
        }
        found = fit.run(start)
        assert fit.values(found).mean() < fit.values(start).mean()
        assert any((value != 0).any() for value in found.values())

        settings = Settings((0.5,), "descent", "fitted", windows=8, size=64, thresholds=True)
        result = calibrate(model, TEXT, settings, tmp_path / "log.json")
        again = calibrate(model, TEXT, settings, tmp_path / "log.json")
        for group, norms in result.tuning.norms.items():
            np.testing.assert_allclose(norms, again.tuning.norms[group], rtol=1e-5)
        assert (result.tuning.exponents == 1).all()
        library = Objective(model, windows[:8])
        fitted = np.mean(library(result.tuning, pywina.Sparsity(0.5)))
        plain = calibrate(
            model, TEXT, Settings((0.5,), "descent", "loss", windows=8, size=64), tmp_path / "log"
        )
        assert fitted < np.mean(library(plain.tuning, pywina.Sparsity(0.5)))


def test_thresholds_by_the_graph(path: Path) -> None:
    """Numbers that torch and the library find, and what they then keep and give."""
    pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate import thresholds
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import TorchObjective

    with pywina.load(path, n_threads=1, backend="cpu") as model:
        windows = cut_windows(model, TEXT, 64, 6)
        norms = {
            g: np.ones((3, model.width(g)), np.float32) for g in ("qkv", "o", "gate_up", "down")
        }
        kept = np.full((2, 3, 4), 0.5, np.float32)
        tuning = Tuning(np.array([0.3, 0.6], np.float32), kept, norms=norms)
        objective = TorchObjective(model, Graph(model), windows)
        rows = []
        for target in (0.3, 0.6):
            rule = pywina.Sparsity(target)
            model.set_tuning(tuning)
            wanted = model.kept_fractions(rule)
            rows.append(thresholds.measure_by_graph(objective, tuning, rule, wanted))
            by_library = thresholds.measure(model, windows, norms, rule, wanted)
            np.testing.assert_allclose(rows[-1], by_library, rtol=0.2)
        tuning.thresholds = np.stack(rows)
        for sparsity in (0.2, 0.3, 0.5, 0.6):
            rule = pywina.Sparsity(sparsity, select="threshold")
            ours = np.mean(objective(tuning, rule))
            share = objective.sparse.kept_fraction()
            assert np.mean(Objective(model, windows)(tuning, rule)) == pytest.approx(ours, rel=0.1)
            model.logits(windows[0], sparsity=rule)
            assert model.stats.kept_fraction == pytest.approx(share, abs=0.05)
        with pytest.raises(pywina.ArgumentError, match=r"up to sparsity 0\.6"):
            thresholds.at(tuning, 0.7)
        with pytest.raises(pywina.ArgumentError, match="needs a calibrated model"):
            thresholds.at(Tuning(), 0.5)


def test_the_loss_as_objective(path: Path) -> None:
    """It is -log p of the tokens that follow, by the library and by torch."""
    pytest.importorskip("torch", reason="torch is not installed (pywina[calibrate])")
    from pywina.calibrate.graph import Graph
    from pywina.calibrate.objective import FIRST, TorchObjective

    rule = pywina.Sparsity(0.3, exponent=0.0)
    with pywina.load(path, n_threads=1, backend="cpu") as model:
        windows = cut_windows(model, TEXT, 64, 3)
        ours = Objective(model, windows, "loss")(None, rule)
        torchs = TorchObjective(model, Graph(model), windows, "loss")(None, rule)
        np.testing.assert_allclose(ours, torchs, rtol=0.02)
        for value, window in zip(ours, windows, strict=True):
            logs = log_probabilities(model, window, rule, first=FIRST)
            wanted = -logs[np.arange(len(logs)), window[FIRST + 1 :]].mean()
            assert value == pytest.approx(wanted, rel=1e-5)
