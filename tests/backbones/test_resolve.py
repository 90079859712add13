"""Which file a backbone is filled from: explicit, cached, downloaded; and whose bytes are accepted."""

from __future__ import annotations

import hashlib
import shutil
import socket

import pytest
import torch
from hub_server import COMMIT, hub_server
from safetensors.torch import save

from cl_prompts.backbones import BackboneSettings, build_backbone, resolve
from cl_prompts.backbones.hub import Hub
from cl_prompts.backbones.records import WeightRecord, pin_key, weight_records
from cl_prompts.errors import BackboneError, DataError
from scenarios.pins import Pins

TAG = "vit_tiny_patch16_224.augreg_in21k"
BY_HAND = "vit_small_patch16_224.mocov3_in1k"
PAGE = f"https://huggingface.co/timm/{TAG}"
SERVED = f"/timm/{TAG}/resolve/main/model.safetensors"
NARROW = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 3}


@pytest.fixture(autouse=True)
def _a_network_that_is_only_loopback(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def content() -> bytes:
    """A weight file of the narrow model."""
    built = build_backbone(settings_of(TAG, checkpoint="untrained"), seed=5)
    return save(built.model.state_dict())


@pytest.fixture
def pins(tmp_path) -> Pins:
    return Pins(tmp_path / "pins.json")


@pytest.fixture
def hub(tmp_path) -> Hub:
    """A cache of our own, and a hub that nothing listens for."""
    return Hub(cache=tmp_path / "cache", endpoint="http://127.0.0.1:9", quiet=True)


@pytest.fixture
def no_network(monkeypatch):
    """From now on every connection is a failure of the test, whatever catches the error."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("no connections here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert tried == []


def settings_of(tag: str, checkpoint: str = "hub", **changes) -> BackboneSettings:
    return BackboneSettings(name="mine", timm_name=tag, checkpoint=checkpoint, **(NARROW | changes))


def cache_file(hub: Hub, content: bytes, commit: str = COMMIT) -> None:
    """Lay the file into the cache as huggingface_hub does."""
    folder = hub.cache / f"models--timm--{TAG}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    (folder / "snapshots" / commit / "model.safetensors").write_bytes(content)


def changed_record(monkeypatch, tag: str = TAG, **changes) -> None:
    """Another record of a tag, as if the table said so."""
    record = weight_records()[tag]
    hub = record.hub.model_copy(update={"revision": changes.pop("revision", None)}) if record.hub else None
    changed: WeightRecord = record.model_copy(update={"hub": hub, **changes})
    monkeypatch.setattr(resolve, "find_record", lambda name: changed if name == tag else None)


def test_a_cached_file_is_used_without_any_connection_and_its_hash_is_kept(hub, pins, content, no_network):
    cache_file(hub, content)
    first = build_backbone(settings_of(TAG), seed=1, hub=hub, pins=pins)
    sha256 = hashlib.sha256(content).hexdigest()
    assert {key: first.identity[key] for key in ("checkpoint", "sha256", "trust", "revision")} == {
        "checkpoint": "model.safetensors",
        "sha256": sha256,
        "trust": "seen for the first time",
        "revision": COMMIT,
    }
    assert pins.get(pin_key(TAG)) == sha256
    again = build_backbone(settings_of(TAG), seed=2, hub=hub, pins=pins)
    assert again.identity == first.identity | {"trust": "as pinned"}
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(images), again(images))


def test_a_cached_file_that_changed_stops(hub, pins, content, no_network):
    cache_file(hub, content)
    build_backbone(settings_of(TAG), seed=1, hub=hub, pins=pins)
    other = build_backbone(settings_of(TAG, checkpoint="untrained"), seed=6)
    cache_file(hub, save(other.model.state_dict()), commit="f" * 40)
    with pytest.raises(DataError) as caught:
        build_backbone(settings_of(TAG), seed=1, hub=hub, pins=pins)
    text = str(caught.value)
    assert all(part in text for part in (TAG, str(pins.path), hashlib.sha256(content).hexdigest(), "delete this entry"))
    (repository,) = hub.cache.glob("models--*")
    assert f"delete {str(repository)!r} and run again" in text
    assert "\n" not in text


def test_a_file_that_does_not_fit_is_not_kept_as_the_right_one(hub, pins, content, no_network):
    cache_file(hub, save({"something": torch.zeros(2)}))
    with pytest.raises(BackboneError, match="does not fit this backbone"):
        build_backbone(settings_of(TAG), seed=1, hub=hub, pins=pins)
    assert pins.get(pin_key(TAG)) is None
    cache_file(hub, content)
    assert build_backbone(settings_of(TAG), seed=1, hub=hub, pins=pins).identity["sha256"]


def test_the_hash_of_the_record_decides_where_there_is_one(hub, pins, content, monkeypatch, no_network):
    cache_file(hub, content)
    changed_record(monkeypatch, sha256=hashlib.sha256(content).hexdigest())
    weights = resolve.resolve_weights(settings_of(TAG), hub=hub, pins=pins)
    assert (weights.trust, weights.pin) == ("as recorded", None)
    changed_record(monkeypatch, sha256="0" * 64)
    with pytest.raises(BackboneError, match=f"is not the file of {TAG}: its sha256 is .*, the record says {'0' * 64}"):
        resolve.resolve_weights(settings_of(TAG), hub=hub, pins=pins)
    assert pins.get(pin_key(TAG)) is None


def test_the_revision_of_the_record_is_the_one_looked_for(hub, pins, content, monkeypatch, no_network):
    cache_file(hub, b"newer", commit="f" * 40)
    folder = hub.cache / f"models--timm--{TAG}" / "snapshots" / COMMIT
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    changed_record(monkeypatch, revision=COMMIT)
    weights = resolve.resolve_weights(settings_of(TAG), hub=hub, pins=pins)
    assert weights.path.read_bytes() == content
    assert weights.revision == COMMIT


def test_a_download_goes_into_the_cache_and_is_not_repeated(hub, pins, content, capfd):
    with hub_server(SERVED, content) as (endpoint, requests):
        online = Hub(cache=hub.cache, endpoint=endpoint)
        frozen = build_backbone(settings_of(TAG), seed=1, hub=online, pins=pins)
        asked = len(requests)
        build_backbone(settings_of(TAG), seed=1, hub=online, pins=pins)
        assert len(requests) == asked
    assert [method for method, _ in requests].count("GET") == 1
    assert (frozen.identity["revision"], frozen.identity["trust"]) == (COMMIT, "seen for the first time")
    told = capfd.readouterr().err
    assert told.startswith("downloading model.safetensors, 0 MB, of https://huggingface.co/timm/")
    assert str(hub.cache) in told.splitlines()[0]


def test_a_quiet_download_says_nothing(hub, pins, content, capfd):
    with hub_server(SERVED, content) as (endpoint, _):
        build_backbone(settings_of(TAG), seed=1, hub=Hub(hub.cache, endpoint, quiet=True), pins=pins)
    assert capfd.readouterr().err == ""


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, pins, content, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 10)
    with hub_server(SERVED, content, breaks_at=[len(content) // 2]) as (endpoint, requests):
        weights = resolve.resolve_weights(settings_of(TAG), hub=Hub(hub.cache, endpoint, quiet=True), pins=pins)
    assert weights.path.read_bytes() == content
    ranges = [begin for method, begin in requests if method == "GET"]
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) == len(content) // 2 // 1024 * 1024


@pytest.mark.parametrize("reason", ["refused", "offline", "not there"])
def test_weights_that_cannot_be_had_say_where_they_are_got_by_hand(reason, hub, pins, content, monkeypatch):
    if reason == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with hub_server("/elsewhere", content) as (endpoint, requests):
        asked = Hub(hub.cache, endpoint, quiet=True) if reason == "not there" else hub
        with pytest.raises(BackboneError) as caught:
            resolve.resolve_weights(settings_of(TAG), hub=asked, pins=pins)
    text = str(caught.value)
    assert all(part in text for part in (TAG, PAGE, str(hub.cache), "set backbone.checkpoint=/path/to/"))
    assert ("HF_HUB_OFFLINE" in text) == (reason == "offline")
    assert "\n" not in text
    assert len(requests) == (reason == "not there")


def test_a_full_disk_is_noticed_before_the_first_byte(hub, pins, content, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=len(content) - 1))
    with hub_server(SERVED, content) as (endpoint, requests):
        with pytest.raises(BackboneError, match="has room for 0 MB; make room, or move the cache with HF_HOME"):
            resolve.resolve_weights(settings_of(TAG), hub=Hub(hub.cache, endpoint, quiet=True), pins=pins)
        assert [method for method, _ in requests] == ["HEAD"]


def test_an_explicit_file_comes_first_and_is_the_users_own(hub, pins, content, tmp_path, no_network):
    cache_file(hub, b"another file")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    frozen = build_backbone(settings_of(TAG, checkpoint=str(path)), seed=1, hub=hub, pins=pins)
    assert (frozen.identity["checkpoint"], frozen.identity["trust"]) == ("mine.safetensors", "own file")
    assert frozen.identity["revision"] is None
    assert pins.get(pin_key(TAG)) is None


def test_an_explicit_file_with_the_recorded_hash_is_known(hub, pins, content, tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    changed_record(monkeypatch, sha256=hashlib.sha256(content).hexdigest())
    weights = resolve.resolve_weights(settings_of(TAG, checkpoint=str(path)), hub=hub, pins=pins)
    assert weights.trust == "as recorded"


def test_a_file_got_by_hand_is_pinned_like_a_download(hub, pins, tmp_path, no_network):
    files = []
    for seed in (1, 2):
        built = build_backbone(settings_of(BY_HAND, checkpoint="untrained"), seed=seed)
        files.append(tmp_path / f"vit-s-300ep-{seed}.pth.tar")
        state = {f"module.base_encoder.{key}": value for key, value in built.model.state_dict().items()}
        torch.save({"state_dict": state}, files[-1])
    trusts = [
        build_backbone(settings_of(BY_HAND, checkpoint=str(files[0])), seed=0, pins=pins).identity["trust"]
        for _ in range(2)
    ]
    assert trusts == ["seen for the first time", "as pinned"]
    with pytest.raises(DataError, match=f"{BY_HAND}.* has sha256"):
        build_backbone(settings_of(BY_HAND, checkpoint=str(files[1])), seed=0, pins=pins)


def test_untrained_and_bundled_need_neither_hub_nor_pins(hub, pins, no_network):
    assert resolve.resolve_weights(settings_of(TAG, checkpoint="untrained"), hub=hub, pins=pins) is None
    halves = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    nano = BackboneSettings(name="vit_nano", checkpoint="bundled", **NARROW, **halves)
    weights = resolve.resolve_weights(nano, hub=hub, pins=pins)
    assert (weights.trust, weights.path.name) == ("bundled", "vit_nano.safetensors")
    assert not pins.path.exists()
