"""scikit-learn models: pickles are not read without trust; with the packages, real pipelines and their own answers."""

import importlib.util
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hyps.errors import DependencyError, ModelError
from hyps_compiler.convert import can_convert, convert

HAS_PACKAGES = all(importlib.util.find_spec(name) for name in ("sklearn", "skl2onnx"))
Array = np.ndarray[Any, Any]


def with_sklearn(test: Any) -> Any:
    """Mark what needs scikit-learn and skl2onnx."""
    for mark in (
        pytest.mark.sklearn,
        pytest.mark.skipif(not HAS_PACKAGES, reason='needs `pip install "hyps[sklearn]"`'),
        pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    ):
        test = mark(test)
    return test


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sprung),)


class TestWithoutPackages:
    @pytest.mark.parametrize("name", ["m.pkl", "m.joblib", "m.skops", "m.PKL"])
    def test_file_is_recognised_by_its_suffix(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        assert can_convert(tmp_path / name)

    @pytest.mark.parametrize("name", ["m.pkl", "m.joblib"])
    def test_pickle_is_not_run_without_trust(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        with pytest.raises(ModelError) as caught:
            convert(tmp_path / name, tmp_path / "out.onnx")
        assert caught.value.code == "E_UNTRUSTED"
        assert "--trust" in caught.value.hint
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_the_trap_works(self, tmp_path: Path) -> None:
        pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
        assert (tmp_path / "sprung").is_dir()

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.pkl").touch()
        with pytest.raises(ModelError, match="is empty"):
            convert(tmp_path / "m.pkl", tmp_path / "out.onnx", trust=True)

    def test_missing_packages_name_the_command_that_installs_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({}))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DependencyError) as caught:
            convert(tmp_path / "m.pkl", tmp_path / "out.onnx", trust=True)
        assert caught.value.hint == 'pip install "hyps[sklearn]"'


# --- models ---


def data() -> tuple[Array, Array]:
    """Return features and one of three classes for each row."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 6)).astype(np.float32)
    return features, (features[:, 0] + features[:, 1] ** 2 > 0.5).astype(int) + (features[:, 2] > 1)


def logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, classes = data()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, classes)


def words() -> Any:
    from sklearn.linear_model import LogisticRegression

    features, classes = data()
    return LogisticRegression().fit(features, np.array(["low", "middle", "high"])[classes])


def random_forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(20, random_state=0).fit(*data())


def gradient_boosting() -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    features, _ = data()
    return GradientBoostingRegressor(n_estimators=20, random_state=0).fit(features, features[:, 0] * features[:, 1])


def support_vectors() -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    features, classes = data()
    return make_pipeline(StandardScaler(), SVC()).fit(features, classes > 0)


def linear_support_vectors() -> Any:
    from sklearn.svm import LinearSVC

    features, classes = data()
    return LinearSVC().fit(features, classes > 0)


def clusters() -> Any:
    from sklearn.cluster import KMeans

    return KMeans(4, n_init=3, random_state=0).fit(data()[0])


def two_transformers() -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    return ColumnTransformer([("plain", StandardScaler(), [0, 1]), ("main", PCA(2), slice(2, 6))]).fit(data()[0])


def table() -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    pandas = importlib.import_module("pandas")
    generator = np.random.default_rng(0)
    people = pandas.DataFrame(
        {
            "age": generator.normal(40, 10, 300),
            "the income": generator.normal(3e4, 1e4, 300),
            "city": generator.choice(["Rome", "Oslo", "Lima"], 300),
            "rooms": generator.integers(1, 5, 300),
        }
    )
    wanted = np.where((people.age > 40) & (people.city == "Rome") | (people.rooms > 3), "yes", "no")
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "the income"]),
            ("words", OneHotEncoder(handle_unknown="ignore"), ["city", "rooms"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(people, wanted)


def dump(model: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(model))
    return path


MODELS = [
    logistic_regression,
    words,
    random_forest,
    gradient_boosting,
    support_vectors,
    linear_support_vectors,
    clusters,
    two_transformers,
]


@with_sklearn
class TestConversion:
    @pytest.mark.parametrize("build", MODELS)
    def test_computes_what_the_source_computes(self, tmp_path: Path, build: Callable[[], Any]) -> None:
        model = build()
        made = convert(dump(model, tmp_path / "m.pkl"), tmp_path / "out.onnx", trust=True)
        assert made.difference is not None
        assert made.difference < 1e-5
        assert made.constant_outputs == ()
        assert [(value.name, value.dtype, (value.shape or ())[1:]) for value in made.inputs] == [
            ("features", "float32", (6,))
        ]
        rows = np.random.default_rng(5).normal(size=(50, 6)).astype(np.float32)
        session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
        first, *others = session.run(None, {"features": rows})
        if hasattr(model, "predict"):
            expected = np.asarray(model.predict(rows))
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(first.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
            else:
                assert (first == expected).all()
        if hasattr(model, "predict_proba"):
            np.testing.assert_allclose(others[0], model.predict_proba(rows), rtol=0, atol=1e-5)

    def test_scores_of_two_classes_have_the_sign_of_the_source(self, tmp_path: Path) -> None:
        model = support_vectors()
        convert(dump(model, tmp_path / "m.pkl"), tmp_path / "out.onnx", trust=True)
        rows = np.random.default_rng(5).normal(size=(50, 6)).astype(np.float32)
        scores = onnxruntime.InferenceSession(tmp_path / "out.onnx").run(["probabilities"], {"features": rows})[0]
        np.testing.assert_allclose(scores[:, 1], model.decision_function(rows), rtol=0, atol=1e-4)

    @pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="needs pandas")
    def test_columns_with_names_become_inputs(self, tmp_path: Path) -> None:
        import joblib  # type: ignore[import-untyped,unused-ignore]  # where it is there at all

        pandas = importlib.import_module("pandas")
        model = table()
        joblib.dump(model, tmp_path / "m.joblib", compress=3)
        made = convert(tmp_path / "m.joblib", tmp_path / "out.onnx", trust=True)
        assert [(value.name, value.dtype) for value in made.inputs] == [
            ("age", "float32"),
            ("the income", "float32"),
            ("city", "string"),
            ("rooms", "int64"),
        ]
        columns: dict[str, Array] = {
            "age": np.array([30, 50], np.float32),
            "the income": np.array([2e4, 3e4], np.float32),
            "city": np.array(["Oslo", "Rome"], object),
            "rooms": np.array([2, 4], np.int64),
        }
        feeds = {name: values.reshape(-1, 1) for name, values in columns.items()}
        labels, shares = onnxruntime.InferenceSession(tmp_path / "out.onnx").run(None, feeds)
        assert list(labels) == list(model.predict(pandas.DataFrame(columns)))
        np.testing.assert_allclose(shares, model.predict_proba(pandas.DataFrame(columns)), rtol=0, atol=1e-5)

    def test_rows_can_be_fixed(self, tmp_path: Path) -> None:
        source = dump(logistic_regression(), tmp_path / "m.pkl")
        made = convert(source, tmp_path / "out.onnx", trust=True, inputs={"features": (4, 6)})
        assert [value.shape for value in made.inputs] == [(4, 6)]

    @pytest.mark.skipif(importlib.util.find_spec("skops") is None, reason="needs skops")
    def test_skops_needs_no_trust(self, tmp_path: Path) -> None:
        skops = importlib.import_module("skops.io")
        skops.dump(logistic_regression(), tmp_path / "m.skops")
        made = convert(tmp_path / "m.skops", tmp_path / "out.onnx")
        assert made.difference is not None
        assert made.difference < 1e-5

    @pytest.mark.skipif(importlib.util.find_spec("skops") is None, reason="needs skops")
    def test_skops_with_types_that_it_does_not_know_needs_trust(self, tmp_path: Path) -> None:
        importlib.import_module("skops.io").dump(random_forest(), tmp_path / "m.skops")
        with pytest.raises(ModelError, match=r"`sklearn\.tree\._tree\.Tree`, which skops does not know") as caught:
            convert(tmp_path / "m.skops", tmp_path / "out.onnx")
        assert caught.value.code == "E_UNTRUSTED"


@with_sklearn
class TestBadFiles:
    def refuse(self, source: Path, wanted: str) -> None:
        with pytest.raises(ModelError) as caught:
            convert(source, source.parent / "out.onnx", trust=True)
        assert wanted in caught.value.message
        assert [path.name for path in source.parent.iterdir()] == [source.name]

    @pytest.mark.parametrize("value", [{"weights": [1, 2]}, b"words", None])
    def test_pickle_of_no_model(self, tmp_path: Path, value: Any) -> None:
        self.refuse(dump(value, tmp_path / "m.pkl"), f"the type `{type(value).__name__}`, which is no scikit-learn")

    def test_model_that_was_never_fitted(self, tmp_path: Path) -> None:
        from sklearn.cluster import KMeans

        self.refuse(dump(KMeans(), tmp_path / "m.pkl"), "never fitted")

    @pytest.mark.parametrize("content", [b"no pickle at all", pickle.dumps([1.5] * 100)[:-20], b"\x80\x04"])
    def test_damaged_pickle(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.pkl").write_bytes(content)
        self.refuse(tmp_path / "m.pkl", "`m.pkl` ")

    def test_step_that_skl2onnx_does_not_know(self, tmp_path: Path) -> None:
        from sklearn.manifold import Isomap

        self.refuse(dump(Isomap(n_components=2).fit(data()[0]), tmp_path / "m.pkl"), "Isomap")

    def test_missing_module_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "m.pkl").write_bytes(b"cno_such_module\nThing\n.")
        with pytest.raises(DependencyError, match="needs the Python module `no_such_module`"):
            convert(tmp_path / "m.pkl", tmp_path / "out.onnx", trust=True)
