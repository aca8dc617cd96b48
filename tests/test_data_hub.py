"""datasets/hub.py against a stand-in of the hub: downloads, interruptions, one plain line for each error."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from test_data_standin import COMMIT, HubStandIn, hub_stand_in

from research.datasets.hub import download, exclusive, free_space, locate, size_text
from research.errors import DataError

ROOT = Path(__file__).parents[1]
REPO = "someone/things"
CONTENT = random.Random(0).randbytes(50_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with hub_stand_in(monkeypatch, tmp_path / "home") as hub:
        hub.add(REPO, "whole.bin", CONTENT)
        hub.add(REPO, "part_aa", CONTENT[:30_000])
        hub.add(REPO, "part_ab", CONTENT[30_000:])
        yield hub


def partials(folder: Path) -> list[Path]:
    return list(folder.glob("*.partial"))


def test_size_and_version_come_from_metadata_alone(hub: HubStandIn) -> None:
    assert locate(REPO, "whole.bin").size == len(CONTENT)
    assert locate(REPO, "whole.bin").etag == hashlib.sha256(CONTENT).hexdigest()
    assert hub.ranges == []


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_download_writes_the_file_and_nothing_else(
    hub: HubStandIn, tmp_path: Path, revision: str | None
) -> None:
    target = download(REPO, ["whole.bin"], tmp_path / "new" / "folder" / "file.bin", revision)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_parts_go_into_one_file_in_order(hub: HubStandIn, tmp_path: Path) -> None:
    assert download(REPO, ["part_aa", "part_ab"], tmp_path / "joined").read_bytes() == CONTENT


def test_a_target_that_is_there_is_not_fetched_again(hub: HubStandIn, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    download(REPO, ["whole.bin"], target)
    hub.ranges.clear()
    download(REPO, ["whole.bin"], target)
    assert hub.ranges == []
    target.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"file\.bin: is not the hub's file \(50,000 bytes\); move it away"):
        download(REPO, ["whole.bin"], target)


def test_a_connection_cut_twice_is_taken_up_within_the_download(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults.extend([("cut", 10_500), ("cut", 5_200)])
    assert download(REPO, ["whole.bin"], tmp_path / "file.bin").read_bytes() == CONTENT
    assert hub.ranges == [None, "bytes=10000-", "bytes=15000-"]


@pytest.mark.parametrize(
    ("names", "ranges"),
    [
        (["whole.bin"], [None, "bytes=40000-", "bytes=40000-"]),
        (["part_aa", "part_ab"], [None, None, "bytes=10000-", "bytes=10000-"]),
    ],
)
def test_a_download_given_up_goes_on_where_it_stopped(
    hub: HubStandIn, tmp_path: Path, names: list[str], ranges: list[str | None]
) -> None:
    target = tmp_path / "file.bin"
    hub.faults.extend([("", 0)] * (len(names) - 1))
    hub.faults.extend([("cut", 40_500 - 30_000 * (len(names) - 1)), ("status", 503)])
    with pytest.raises(DataError, match="status 503; run again to resume"):
        download(REPO, names, target)
    assert not target.exists()
    assert [path.stat().st_size for path in partials(tmp_path)] == [40_000]
    assert download(REPO, names, target).read_bytes() == CONTENT
    assert hub.ranges == ranges
    assert partials(tmp_path) == []


def test_a_killed_download_goes_on_in_the_next_process(hub: HubStandIn, tmp_path: Path) -> None:
    content = random.Random(1).randbytes(25 * 2**20)
    hub.add(REPO, "large.bin", content)
    hub.faults.append(("stall", 22 * 2**20))
    target = tmp_path / "large.bin"
    code = f"from research.datasets.hub import *; download('{REPO}', ['large.bin'], Path('{target}'))"
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    wait_until(lambda: any(path.stat().st_size >= 20 * 2**20 for path in partials(tmp_path)))
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not target.exists()
    second = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert target.read_bytes() == content
    assert hub.ranges == [None, f"bytes={20 * 2**20}-"]
    assert "large.bin" in second.stderr and "100%" in second.stderr


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("names", [["whole.bin"], ["part_aa", "part_ab"]])
def test_a_server_without_ranges_starts_the_file_anew(
    hub: HubStandIn, tmp_path: Path, names: list[str]
) -> None:
    hub.faults.extend([("", 0)] * (len(names) - 1))
    hub.faults.extend([("cut", 10_500), ("ignore range", 0)])
    assert download(REPO, names, tmp_path / "file.bin").read_bytes() == CONTENT


def test_damage_is_noticed_and_removed(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults.extend([("cut", 10_500), ("status", 503)])
    with pytest.raises(DataError):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")
    (partial,) = partials(tmp_path)
    partial.write_bytes(b"x" * 10_000)
    with pytest.raises(DataError, match="arrived damaged and was removed; run again"):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert download(REPO, ["whole.bin"], tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_good_part_outlives_a_damaged_one(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults.extend([("", 0), ("cut", 10_500), ("status", 503)])
    with pytest.raises(DataError):
        download(REPO, ["part_aa", "part_ab"], tmp_path / "joined")
    (partial,) = partials(tmp_path)
    partial.write_bytes(CONTENT[:39_999] + b"x" + b"too long" * 10_000)
    with pytest.raises(DataError, match="part_ab: arrived damaged and was removed; run again"):
        download(REPO, ["part_aa", "part_ab"], tmp_path / "joined")
    hub.ranges.clear()
    assert download(REPO, ["part_aa", "part_ab"], tmp_path / "joined").read_bytes() == CONTENT
    assert hub.ranges == [None], "only the second part comes again"


def test_a_new_version_on_the_hub_does_not_meet_the_old_half(hub: HubStandIn, tmp_path: Path) -> None:
    hub.faults.extend([("cut", 10_500), ("status", 503)])
    with pytest.raises(DataError):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")
    hub.add(REPO, "whole.bin", CONTENT[::-1])
    assert download(REPO, ["whole.bin"], tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_no_space_is_said_before_anything_comes(hub: HubStandIn, tmp_path: Path) -> None:
    hub.claimed_size = 10**16
    with pytest.raises(DataError, match=r"no space: 10,000,000.0 GB more needed, [0-9,.]+ [GMk]B free$"):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")
    assert hub.ranges == []


@pytest.mark.parametrize(
    ("repo", "name", "reason"),
    [
        (REPO, "absent.bin", "someone/things/absent.bin: the dataset has no such file"),
        ("no/body", "whole.bin", "no/body/whole.bin: the hub has no such dataset"),
        ("not a repo", "whole.bin", "not a repo/whole.bin: .*not a repo"),
    ],
)
def test_what_is_not_on_the_hub_is_named(
    hub: HubStandIn, tmp_path: Path, repo: str, name: str, reason: str
) -> None:
    with pytest.raises(DataError, match=reason) as error:
        download(repo, [name], tmp_path / "file.bin")
    assert "\n" not in str(error.value)


def test_no_network_is_one_line(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}"
    )
    with pytest.raises(DataError, match="someone/things/whole.bin: no connection to "):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")


def test_a_folder_that_cannot_be_is_one_line(hub: HubStandIn, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="File exists"):
        download(REPO, ["whole.bin"], tmp_path / "taken" / "file.bin")


def test_the_librarys_cache_is_used(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub.hf_hub_download(REPO, "whole.bin", repo_type="dataset")
    hub.ranges.clear()
    assert download(REPO, ["whole.bin"], tmp_path / "online.bin").read_bytes() == CONTENT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(REPO, ["whole.bin"], tmp_path / "offline.bin").read_bytes() == CONTENT
    assert hub.ranges == []


def test_offline_keeps_what_is_there_and_names_what_is_not(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "mine.bin").write_bytes(b"mine")
    assert download(REPO, ["whole.bin"], tmp_path / "mine.bin").read_bytes() == b"mine"
    with pytest.raises(DataError, match="someone/things/whole.bin: HF_HUB_OFFLINE is set"):
        download(REPO, ["whole.bin"], tmp_path / "file.bin")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "file.partial"
    another = pytest.raises(DataError, match="file.partial: another process is writing it")
    with exclusive(path), another, exclusive(path):
        pass
    with exclusive(path):
        pass


def test_sizes_for_people() -> None:
    assert [size_text(size) for size in (12, 5_100, 64_559_075_373)] == ["12 bytes", "5.1 kB", "64.6 GB"]
    assert free_space(Path("not/there/yet")) > 0
