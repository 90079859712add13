"""What is read about free memory, from files as the system writes them."""

import pytest

from scenarios.datasets._memory import available_bytes

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"


def system(root, meminfo=None, **group):
    """A root with `proc/meminfo` and these files of the control group, `__` for a slash."""
    files = {f"sys/fs/cgroup/{name.replace('__', '/')}": text for name, text in group.items()}
    if meminfo is not None:
        files["proc/meminfo"] = meminfo
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(limit, use, file):
    return {"memory.max": f"{limit}\n", "memory.current": f"{use}\n", "memory.stat": f"anon 5\nfile {file}\nslab 2\n"}


def version_1(limit, use, cache):
    names = ("limit_in_bytes", "usage_in_bytes", "stat")
    texts = (f"{limit}\n", f"{use}\n", f"cache 1\ntotal_cache {cache}\n")
    return {f"memory__memory.{name}": text for name, text in zip(names, texts, strict=True)}


@pytest.mark.parametrize(
    "meminfo, group, expected",
    [
        (None, {}, None),
        ("nonsense\n", {}, None),
        (MEMINFO, {}, 600 * 1024),
        (MEMINFO, version_2("max", 70, 10), 600 * 1024),
        (MEMINFO, version_2(1000, 700, 200), 500),
        (None, version_2(1000, 700, 200), 500),
        (MEMINFO, version_2(1000, 1200, 0), 1),
        (MEMINFO, version_1(1000, 700, 100), 400),
        (MEMINFO, version_1(9223372036854771712, 700, 100), 600 * 1024),
    ],
)
def test_the_smaller_of_machine_and_container(tmp_path, meminfo, group, expected):
    assert available_bytes(system(tmp_path, meminfo, **group)) == expected
