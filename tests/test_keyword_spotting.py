"""The keyword-spotting example on a small tree in the layout of Google Speech Commands."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.io import wavfile

from csengine import audio

EXAMPLE = Path(__file__).parents[1] / "examples" / "keyword_spotting"
BENCH = Path(__file__).parents[1] / "bench"
RECORDINGS = Path(audio.__file__).parent / "models" / "recordings"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "bed", "yes")
SPEAKERS = {"0a7c2a8d": "training", "1b4c9b89": "training", "2c6d3924": "validation", "3e7124ba": "test"}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The example's modules by name; they import each other as scripts do."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = [path.stem for path in EXAMPLE.glob("*.py")]
    needed = ["voices", "augmentation", "synthesis", "dataset"]
    if importlib.util.find_spec("torch"):
        needed += ["network", "train", "study", "sparsity"]
    yield {name: importlib.import_module(name) for name in needed}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Tones instead of words: real Speech Commands are 16 kHz, 16 bit, up to 1 s."""
    root = tmp_path / "speech_commands"
    rng = np.random.default_rng(0)
    lists: dict[str, list[str]] = {"validation": [], "test": []}
    for number, word in enumerate(WORDS):
        (root / word).mkdir(parents=True)
        for speaker, split in SPEAKERS.items():
            clip = f"{word}/{speaker}_nohash_0.wav"
            samples = np.sin(np.arange(rng.integers(9_000, 16_001)) * 0.04 * (number + 1)) + rng.normal(0, 0.01)
            wavfile.write(root / clip, 16_000, np.rint(9_000 * samples).astype(np.int16))
            if split in lists:
                lists[split].append(clip)
    (root / "_background_noise_").mkdir()
    for name in ("pink_noise", "running_tap"):
        noise = rng.integers(-3_000, 3_000, 5 * 16_000).astype(np.int16)
        wavfile.write(root / "_background_noise_" / f"{name}.wav", 16_000, noise)
    (root / "_background_noise_" / "README.md").write_text("not a recording")
    (root / "validation_list.txt").write_text("\n".join(lists["validation"]) + "\n")
    (root / "testing_list.txt").write_text("\n".join(lists["test"]) + "\n")
    return root


def test_splits_follow_the_lists_and_share_no_speaker(example: dict[str, ModuleType], tree: Path) -> None:
    splits = {name: example["dataset"].read_split(tree, name) for name in ("training", "validation", "test")}
    for name, split in splits.items():
        assert set(split.speakers) == {speaker for speaker, where in SPEAKERS.items() if where == name}
    assert len(splits["training"].paths) == 20 + 4
    assert splits["training"].silences == 2
    assert splits["test"].labels.count(0) == 1, "unknown words do not outnumber a digit"
    assert sorted(set(splits["test"].labels)) == [0, *range(2, 12)]


def test_features_have_the_networks_shape_and_do_not_depend_on_the_workers(
    example: dict[str, ModuleType], tree: Path
) -> None:
    dataset = example["dataset"]
    split = dataset.read_split(tree, "training")
    one, two = (dataset.render(tree, split, renderings=2, workers=workers) for workers in (1, 2))
    assert one.x.shape == (2, len(split), 1, 32, 32)
    assert one.y.tolist().count(dataset.SILENCE) == split.silences
    np.testing.assert_array_equal(one.x, two.x)
    assert not np.array_equal(one.x[0], one.x[1]), "every rendering degrades afresh"
    assert one.x.min() >= 0
    assert one.x.max() <= 1


def test_evaluation_clips_are_used_as_they_are(example: dict[str, ModuleType], tree: Path) -> None:
    dataset = example["dataset"]
    split = dataset.read_split(tree, "test")
    inputs = dataset.render(tree, split, renderings=1, workers=1).inputs
    expected = audio.load_input(split.paths[0])[0]
    np.testing.assert_allclose(inputs[0], expected, atol=1e-3)  # kept as float16


def test_features_are_kept_on_disk(example: dict[str, ModuleType], tree: Path, tmp_path: Path) -> None:
    dataset = example["dataset"]
    first = dataset.load_features(tree, tmp_path / "cache", renderings=1)
    shutil.rmtree(tree / "_background_noise_")
    again = dataset.load_features(tree, tmp_path / "cache", renderings=1)
    for name in dataset.SPLITS:
        np.testing.assert_array_equal(first[name].x, again[name].x)


def test_a_directory_that_is_no_data_set_is_explained(example: dict[str, ModuleType], tree: Path) -> None:
    for word in WORDS[:10]:
        shutil.rmtree(tree / word)
    (tree / "testing_list.txt").write_text("bed/3e7124ba_nohash_0.wav\n")
    with pytest.raises(FileNotFoundError, match="no digit"):
        example["dataset"].read_split(tree, "test")


def test_noises_of_training_and_evaluation_do_not_overlap(example: dict[str, ModuleType], tree: Path) -> None:
    training = example["augmentation"].read_noises(tree, "training")
    evaluation = example["augmentation"].read_noises(tree, "test")
    whole = [audio.read_wav(path) for path in sorted((tree / "_background_noise_").glob("*.wav"))]
    for first, last, everything in zip(training, evaluation, whole, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, last]), everything)


@pytest.mark.parametrize("samples", ["word", "zeros"])
def test_degraded_clips_are_finite_and_in_range(example: dict[str, ModuleType], samples: str) -> None:
    rng = np.random.default_rng(1)
    noises = list(example["augmentation"].make_noises(4, [np.ones(4_000, np.float32)], rng).values())
    clip = np.zeros(16_000, np.float32)
    if samples == "word":
        clip[6_000:10_000] = np.sin(np.arange(4_000) * 0.2)
    for _ in range(50):
        degraded = example["augmentation"].degrade(clip, noises, rng)
        assert degraded.shape == (16_000,)
        assert degraded.dtype == np.float32
        assert np.abs(degraded).max() <= 1
        silence = example["augmentation"].make_silence(noises, rng)
        assert np.isfinite(silence).all()


def test_families_keep_related_voices_together(example: dict[str, ModuleType]) -> None:
    family = example["voices"].family
    assert family("iven3") == family("iven") == "iven"
    assert family("whisperf") == family("whisper")
    assert family("AnxiousAndy") == family("Andy")
    assert family("f2") != family("f3")
    assert not example["voices"].TEST_FAMILIES & example["voices"].VALIDATION_FAMILIES


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_a_speaker_is_synthesized_into_the_layout(example: dict[str, ModuleType], tmp_path: Path) -> None:
    synthesis, voices = example["synthesis"], example["voices"]
    speaker = voices.Speaker("espeak-f2", "espeak-ng", "f2", "training")
    takes = synthesis.plan_takes(speaker, seed=0)
    assert takes == synthesis.plan_takes(speaker, seed=0)
    assert {take.word for take in takes} == {*voices.DIGITS, *voices.OTHER_WORDS}
    assert {take.accent for take in takes} == set(voices.ACCENTS)
    spoken = list(synthesis.speak(speaker, takes[:3], tmp_path))
    assert len(spoken) == 3
    for _, samples in spoken:
        assert 2_000 < len(samples) < 16_000


def test_every_shipped_recording_is_one_second_of_a_held_out_voice(example: dict[str, ModuleType]) -> None:
    listed = json.loads((RECORDINGS / "recordings.json").read_text())["recordings"]
    assert sorted(entry["file"] for entry in listed) == sorted(path.name for path in RECORDINGS.glob("*.wav"))
    assert {entry["label"] for entry in listed} == set(example["dataset"].LABELS)
    for entry in listed:
        rate, data = wavfile.read(RECORDINGS / entry["file"])
        assert (rate, data.dtype, data.shape) == (16_000, np.int16, (16_000,))
        voice = entry["voice"]
        if entry["label"] == "silence":
            assert voice is None
        elif voice.startswith("espeak-"):
            assert example["voices"].split_of_variant(voice.removeprefix("espeak-")) == "test"
        else:
            assert example["voices"].RECORDED_SPEAKERS[voice] == "test"


class TestNetwork:
    """The networks and their training; needs torch."""

    pytestmark = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")

    @pytest.mark.parametrize(
        ("variant", "nonzeros"),
        [
            ("dense", 2_522_128),
            ("sparse-dense", 127_696),
            ("sparse-sparse", 127_696),
            ("sparse-sparse-first", 127_696 - 64 * 7),
            ("sparse-sparse-blocked", None),
        ],
    )
    def test_sizes_are_the_papers(self, example: dict[str, ModuleType], variant: str, nonzeros: int | None) -> None:
        import torch

        torch.manual_seed(0)  # of millions of random weights one may be 0
        network = example["network"].build_network(variant).eval()
        count = example["network"].count_nonzeros(network)
        if nonzeros is None:
            assert 127_696 < count < 1.2 * 127_696, "a quarter of the second convolution instead of an eighth"
        else:
            assert count == nonzeros
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 12)

    def test_the_split_over_the_layers_is_exact(self, example: dict[str, ModuleType]) -> None:
        network = example["network"].build_network("sparse-sparse")
        layers = {name: network.get_submodule(name) for name in ("conv1", "conv2", "linear", "output")}
        counts = {name: int((layer.weight != 0).sum()) for name, layer in layers.items()}
        assert counts == {"conv1": 768, "conv2": 12_800, "linear": 96_000, "output": 18_000}

    def test_a_sparser_first_layer_has_sets_of_five(self, example: dict[str, ModuleType]) -> None:
        network = example["network"].build_network("sparse-sparse-first")
        masks = example["study"].describe_masks(network)
        assert masks["conv1"] == {"block": (1, 1), "sets": 13, "set_size": 5, "nonzeros": 64 * 5}
        assert (network.conv1.weight != 0).sum(dim=(1, 2, 3)).tolist() == [5] * 64

    def test_static_patterns_do_not_ask_the_weights_and_the_others_become_sparser(
        self, example: dict[str, ModuleType]
    ) -> None:
        import torch

        from csengine.torch import mask_of

        def patterns(method: str, sparsity: float, stages: tuple[int, ...]) -> list[np.ndarray]:
            name, found = example["network"].on_curve(method, sparsity), []
            for stages_left in stages:
                network = example["network"].build_network(name, masked=False)
                torch.nn.init.normal_(network.linear.weight)
                example["network"].prune(network, name, 0, stages_left)
                mask = mask_of(network.linear)
                found.append(np.ones((1600, 1500), bool) if mask is None else mask.matrix)
            return found

        first, last = patterns("random", 0.98, (2, 0))
        np.testing.assert_array_equal(first, last)
        assert first.mean() == pytest.approx(0.02)
        stages = patterns("blocks", 0.75, (2, 1, 0, 0))
        assert [stage.mean() for stage in stages] == pytest.approx([1, 0.5, 0.25, 0.25])
        assert (stages[2] != stages[3]).any(), "other weights are strongest"

    def test_the_curve_of_accuracy_against_sparsity(
        self, example: dict[str, ModuleType], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sparsity = example["sparsity"]
        features = example["dataset"].load_features(tree, tmp_path / "cache", renderings=1)
        recipe = example["train"].Recipe(1, 1, renderings=1, batch=8, pruned_after=sparsity.PRUNED_AFTER)
        for variant in ("teacher", "blocks-75", "blocks-95"):
            example["train"].run(variant, 0, features, tmp_path / "runs", recipe)
        results = list(sparsity.measure(tmp_path / "runs", 0, features))
        assert [row["method"] for row in results] == ["dense", "blocks", "blocks"]
        assert [row["density"] for row in results] == pytest.approx([1, 0.25, 0.05], rel=0.05)
        assert all(0 <= row["accuracy"] <= 1 for row in results)
        example["study"].write(tmp_path / "kws-sparsity.json", tree, recipe, results=results)
        pytest.importorskip("matplotlib")
        monkeypatch.syspath_prepend(str(BENCH))
        section = importlib.import_module("report").sections(tmp_path, tmp_path)["kws-sparsity"]
        assert "| 95 % |" in section
        assert "12 clips of 1 speakers" in section
        assert (tmp_path / "kws-sparsity.png").stat().st_size > 1000

    def test_activations_are_as_sparse_as_the_winners_allow(self, example: dict[str, ModuleType]) -> None:
        import torch

        network = example["network"].build_network("sparse-sparse").eval()
        x = torch.rand(2, 1, 32, 32)
        active = {}
        for name, module in network.named_children():
            x = module(x)
            if name.startswith("winners"):
                assert x.min() >= 0
                active[name] = int((x != 0).sum(dim=1).max())
        assert active["winners1"] <= 6
        assert active["winners2"] <= 8
        assert active["winners3"] <= 150

    def test_pooling_first_is_the_same_function_in_evaluation(self, example: dict[str, ModuleType]) -> None:
        import torch

        torch.manual_seed(0)
        network = example["network"].build_network("sparse-dense")
        network(torch.rand(16, 1, 32, 32))  # moves the statistics away from 0 and 1
        x = torch.rand(4, 1, 32, 32)
        swapped = example["network"].pool_first(network.eval())
        torch.testing.assert_close(swapped(x), network(x))

    def test_distorted_samples_are_as_loud_and_in_range(self, example: dict[str, ModuleType]) -> None:
        import torch

        torch.manual_seed(0)
        x = torch.rand(8, 1, 32, 32)
        x /= x.amax(dim=(2, 3), keepdim=True)
        distort = example["train"].distort
        torch.testing.assert_close(distort(x, stretch=1, bands=0, frames=0, level=0), x)
        distorted = distort(x)
        assert distorted.shape == x.shape
        assert distorted.min() >= 0
        torch.testing.assert_close(distorted.amax(dim=(2, 3)), torch.ones(8, 1))
        assert (distorted - x).abs().mean(dim=(1, 2, 3)).min() > 0.01, "every sample is distorted"

    def test_a_tone_moves_by_the_bands_and_frames_it_is_told(self, example: dict[str, ModuleType]) -> None:
        import torch

        torch.manual_seed(0)
        x = torch.zeros(64, 1, 32, 32)
        x[:, :, 15, 15] = 1
        place = example["train"].distort(x, stretch=1, bands=2, frames=0, level=0).flatten(1).argmax(dim=1)
        assert set((place % 32).tolist()) == {15}
        assert {13, 17} <= set((place // 32).tolist()) <= {13, 14, 15, 16, 17}

    def test_training_writes_a_checkpoint_that_loads(
        self, example: dict[str, ModuleType], tree: Path, tmp_path: Path
    ) -> None:
        train = example["train"]
        features = example["dataset"].load_features(tree, tmp_path / "cache", renderings=1)
        recipe = train.Recipe(epochs=2, teacher_epochs=2, renderings=1, batch=8)
        train.run("teacher", 3, features, tmp_path / "runs", recipe)
        train.run("sparse-sparse", 3, features, tmp_path / "runs", recipe)
        facts = json.loads((tmp_path / "runs" / "sparse-sparse-3.json").read_text())
        network = train.load_network(tmp_path / "runs" / "sparse-sparse-3.pt")
        masks = example["study"].describe_masks(network)
        assert {name: mask["nonzeros"] for name, mask in masks.items()} == {
            "conv1": 768,
            "conv2": 12_800,
            "linear": 96_000,
        }
        assert facts["nonzeros"] <= 127_696, "so short a training has not moved all weights that were pruned in between"
        assert train.accuracy(network, features["test"]) == facts["float"]["test"]
        study = example["study"].evaluate(tmp_path / "runs", features)
        assert study == {}, "seed 3 is not part of the study"
