# SPDX-License-Identifier: GPL-2.0-or-later
"""vmmswap/config.py: files in, settings out, mistakes with file and line."""

import pytest

from tests.support.monitor import PLAIN
from vmmswap import config
from vmmswap.config import KEYS, Config, load
from vmmswap.config_checks import ConfigError
from vmmswap.config_listing import listing
from vmmswap.engine import Mode, Tiers
from vmmswap.monitor.operations.options import swap_out_options
from vmmswap.monitor.tiers import tiers_of


@pytest.fixture
def write(tmp_path):
    def write_file(text, name="vmmswap.conf"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_nothing_configured_gives_the_defaults():
    assert load("web", []) == Config()


def test_what_stands_for_one_vm_comes_before_what_stands_for_all(write):
    path = write("[VM web]\nMaxPasses=3\n\n[Swap]\nMaxPasses=2\nWorkers = 4\n# a comment\n; another\n")
    assert load("web", [path]).max_passes == 3
    assert load("db", [path]).max_passes == 2
    assert load("web", [path]).workers == load("db", [path]).workers == 4


def test_later_files_and_lines_win_and_an_empty_value_means_the_default(write):
    first = write("[Swap]\nMode=freeze\nMode=live\nSpinUSec=10\n", "a.conf")
    second = write("[Swap]\nSpinUSec=\n", "b.conf")
    settings = load("web", [first, second])
    assert (settings.mode, settings.spin_us) == ("live", 0)


def test_an_empty_value_for_one_vm_is_not_that_of_all(write):
    path = write("[Swap]\nWorkers=7\n[VM web]\nWorkers=\n")
    assert load("web", [path]).workers == Config().workers


def test_the_hosts_files_are_the_main_one_and_the_drop_ins_by_name(tmp_path, monkeypatch):
    drop_ins = tmp_path / "vmmswap.conf.d"
    drop_ins.mkdir()
    monkeypatch.setattr(config, "FILE", tmp_path / "vmmswap.conf")
    monkeypatch.setattr(config, "DROP_IN_DIR", drop_ins)
    assert load("web") == Config()
    (tmp_path / "vmmswap.conf").write_text("[Swap]\nWorkers=1\nMaxPasses=9\n")
    (drop_ins / "20.conf").write_text("[Swap]\nWorkers=3\n")
    (drop_ins / "10.conf").write_text("[Swap]\nWorkers=2\n")
    (drop_ins / "30.txt").write_text("no configuration\n")
    assert (load("web").workers, load("web").max_passes) == (3, 9)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[Swap]\nColour=red\n", 2, ["'Colour' is not a key", "Mode"]),
        ("[Swapp]\n", 1, ["[Swapp] is not a section", "[VM NAME]"]),
        ("[VM]\n", 1, ["not a VM name"]),
        ("[VM -x]\n", 1, ["'-x' is not a VM name"]),
        ("Mode=live\n", 1, ["before the first section"]),
        ("[Swap]\n\nMode live\n", 3, ["'Mode live' is not of the form Key=value"]),
        ("[Swap]\nMode=fast\n", 2, ["Mode=fast", "auto, live, freeze"]),
        ("[Swap]\nWorkers=0\n", 2, ["whole number from 1 to 16"]),
        ("[Swap]\nWorkers=two\n", 2, ["'two'"]),
        ("[Swap]\nWorkers=\N{SUPERSCRIPT TWO}\n", 2, ["whole number"]),
        ("[Swap]\nFreezeTimeoutSec=nan\n", 2, ["not a time span", "1min 30s"]),
        ("[Swap]\nFreezeTimeoutSec=0\n", 2, ["time span above 0 and up to a day"]),
        ("[Swap]\nFreezeTimeoutSec=10 parsecs\n", 2, ["not a time span"]),
        ("[Swap]\nPinSettleMSec=1h\n", 2, ["time span up to 600 s"]),
        ("[Swap]\nSwapDirectory=swap\n", 2, ["not an absolute path"]),
        ("[VM other]\nPageFaultLog=paper\n", 2, ["journal, file, both"]),
    ],
)
def test_a_mistake_is_named_with_file_and_line(write, text, line, words):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load("web", [path])
    message = caught.value.message
    assert message.startswith(f"{path}:{line}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("FreezeTimeoutSec=10s", "freeze_timeout_s", 10.0),
        ("FreezeTimeoutSec=10", "freeze_timeout_s", 10.0),
        ("FreezeTimeoutSec=0.5", "freeze_timeout_s", 0.5),
        ("FreezeLimitSec=1min 30s", "freeze_limit_s", 90.0),
        ("HandoffTimeoutSec=250ms", "handoff_timeout_s", 0.25),
        ("IdleExitSec=2h", "idle_exit_s", 7200.0),
        ("IdleExitSec=0", "idle_exit_s", 0.0),
        ("IdleExitSec=infinity", "idle_exit_s", 0.0),
        ("SpinUSec=50", "spin_us", 50),
        ("SpinUSec=1ms", "spin_us", 1000),
        ("PinSettleMSec=500", "pin_settle_ms", 500),
        ("PinSettleMSec=2s", "pin_settle_ms", 2000),
    ],
)
def test_times_are_spans_as_systemd_has_them(write, text, attribute, value):
    assert getattr(load("web", [write(f"[Swap]\n{text}\n")]), attribute) == value


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load("web", [tmp_path / "absent.conf"])
    (tmp_path / "binary.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load("web", [tmp_path / "binary.conf"])


@pytest.mark.parametrize("line", ["FaultAround=4K", "FaultAround=12K", "FaultAround=4M", "FaultAround=1%"])
def test_a_window_is_a_power_of_two(write, line):
    path = write(f"[Swap]\n{line}\n")
    with pytest.raises(
        ConfigError, match=rf"{path}:2: {line}: .* is neither 0 nor a power of two from 8K to 2M"
    ):
        load("web", [path])


@pytest.mark.parametrize("line", ["IdleSetMax=infinity", "IdleSetMax=-1", "IdleSetMax=101%"])
def test_what_may_stay_is_a_size(write, line):
    path = write(f"[Swap]\n{line}\n")
    with pytest.raises(ConfigError, match=rf"{path}:2: {line}: .* is not a size"):
        load("web", [path])


def test_every_key_takes_its_default_and_says_what_it_is_for(write):
    lines = "".join(f"{key.name}={key.default}\n" for key in KEYS)
    assert load("web", [write(f"[Swap]\n{lines}")]) == Config()
    assert all(key.help.endswith(".") and key.kind for key in KEYS)
    assert len({key.name for key in KEYS}) == len(KEYS) == len(Config.__slots__)


def test_settings_survive_json_also_that_of_another_version():
    settings = Config(mode="freeze", pin_settle_ms=5)
    assert Config.from_json(settings.to_json()) == settings
    assert Config.from_json({"mode": "freeze", "of_the_future": 1}).mode == "freeze"


PAGES = 100_000  # of the VM


@pytest.mark.parametrize(("text", "pages"), [("0", 0), ("64K", 16), ("2%", 2000)])
def test_what_may_stay_resident(text, pages):
    options = swap_out_options(Config(idle_set_max=text), PAGES, promised_unpinned=True)
    assert options.idle_pages_max == pages


def test_swap_out_options():
    options = swap_out_options(
        Config(mode="freeze", freeze_timeout_s=0.5, max_passes=2), PAGES, promised_unpinned=True
    )
    assert (options.mode, options.freeze_timeout_ms, options.max_passes) == (Mode.FREEZE, 500, 2)
    assert options.idle_pages_max == 1024
    assert options.pins is not None
    assert options.pins.promised_unpinned


@pytest.mark.parametrize(
    ("settings", "bpf", "collapse", "promised", "settle_ms"),
    [
        (Config(), True, True, True, 0),
        (Config(pin_settle_ms=50), True, True, True, 50),
        (Config(pin_check="bpf", pin_settle_ms=50), True, False, False, 0),
        (Config(pin_check="collapse"), False, True, False, 0),
        (Config(pin_check="settle"), False, False, False, 10_000),
        (Config(pin_check="settle", pin_settle_ms=7), False, False, False, 7),
    ],
)
def test_pin_options(settings, bpf, collapse, promised, settle_ms):
    pins = swap_out_options(settings, PAGES, promised_unpinned=True).pins
    assert pins is not None
    assert (pins.bpf, pins.collapse, pins.promised_unpinned) == (bpf, collapse, promised)
    assert pins.settle_ms == settle_ms


@pytest.mark.parametrize(
    ("settings", "drained"),
    [
        (Config(), True),
        (Config(pin_check="qmp"), True),
        (Config(mode="freeze"), False),
        (Config(pin_check="qmp", mode="freeze"), False),
        (Config(pin_check="bpf"), False),
        (Config(pin_check="settle"), False),
    ],
)
def test_qmp_is_for_those_who_may_and_not_for_the_frozen(settings, drained):
    pins = swap_out_options(settings, PAGES, promised_unpinned=True, qmp_drained=True).pins
    assert pins is not None
    assert pins.qmp_drained is settings.may_drain is drained
    if settings.pin_check == "qmp":
        assert not (pins.bpf or pins.collapse or pins.promised_unpinned or pins.settle_ms)
    assert not swap_out_options(settings, PAGES, promised_unpinned=True).pins.qmp_drained


def test_no_pin_check_at_all():
    assert swap_out_options(Config(pin_check="off"), PAGES, promised_unpinned=False).pins is None


def test_where_each_value_stands(write):
    first = write("[Swap]\nWorkers=4\nMode=live\n[VM web]\nMode=freeze\n", "a.conf")
    second = write("[Swap]\nWorkers=2\nMaxPasses=\n", "b.conf")
    settings, origins = config.load_with_origins("web", [first, second])
    assert (settings.workers, settings.mode) == (2, "freeze")
    assert origins == {"workers": f"{second}:2", "mode": f"{first}:5"}


def test_what_a_reload_changes_is_what_a_swap_out_is_given():
    """Each key that may be reloaded changes the options of a swap-out."""
    other = {
        "mode": "freeze", "max_passes": 7, "until_resident_pages": 7, "freeze_timeout_s": 7.0,
        "freeze_limit_s": 7.0, "pin_check": "bpf", "pin_settle_ms": 7, "idle_set_max": "7M",
    }  # fmt: skip
    before = swap_out_options(Config(), PAGES, promised_unpinned=False)
    for attribute, value in other.items():
        assert swap_out_options(Config(**{attribute: value}), PAGES, promised_unpinned=False) != before
    read_elsewhere = {"wake_prefetch", "write_budget_per_day"}
    assert set(other) | read_elsewhere == {key.attribute for key in KEYS if key.may_reload}


def test_the_listing_has_files_first_and_defaults_last():
    rows = [
        ("Mode", "live", "/etc/x.conf:4", ""),
        ("MaxPasses", "1", "default", "3"),
        ("Workers", "4", "/etc/x.conf:2", ""),
    ]
    assert listing(rows) == [
        "# /etc/x.conf:2",
        "Workers=4",
        "",
        "# /etc/x.conf:4",
        "Mode=live",
        "",
        "# default",
        "#MaxPasses=1",
        "# after a restart: MaxPasses=3",
    ]


def test_pages_must_have_a_place(tmp_path):
    file = tmp_path / "one.conf"
    file.write_text("[Swap]\nRamTierMax=0\nDiskTierMax=0\n")
    with pytest.raises(ConfigError, match=r"one\.conf:2, .*one\.conf:3: .*leave no place"):
        load("web", [file])
    file.write_text("[Swap]\nRamTierMax=0\n")
    assert load("web", [file]).has_disk_tier


def test_tiers_are_the_default_and_three_settings_leave_a_plain_file(tmp_path):
    default = load("web", [])
    assert not default.is_plain
    assert tiers_of(default, 1 << 30) == Tiers(256 << 20, 600, has_disk=True, compress=True, encrypt=True)
    file = tmp_path / "one.conf"
    for other in ("RamTierMax=2M\nRamTierCompression=none", "DiskTierCompression=lz4", "Encryption=yes"):
        file.write_text("\n".join(["[Swap]", *PLAIN, other, ""]))
        assert not load("web", [file]).is_plain
    file.write_text("\n".join(["[Swap]", *PLAIN, ""]))
    assert load("web", [file]).is_plain


@pytest.mark.parametrize(
    ("ram_tier_max", "guest_bytes", "ram_max_bytes"),
    [("25%", 1 << 20, 2 << 20), ("1%", 64 << 20, 2 << 20), ("50%", 64 << 20, 32 << 20),
     ("3M", 1 << 20, 3 << 20), ("0", 1 << 30, 0), ("0%", 1 << 30, 0), ("", 64 << 20, 16 << 20)],
)  # fmt: skip
def test_a_percentage_is_at_least_one_segment(ram_tier_max, guest_bytes, ram_max_bytes):
    assert tiers_of(Config(ram_tier_max=ram_tier_max), guest_bytes).ram_max_bytes == ram_max_bytes


def test_pages_are_compressed_once(tmp_path):
    file = tmp_path / "one.conf"
    file.write_text("[Swap]\nRamTierMax=1G\nDiskTierCompression=none\n")
    with pytest.raises(ConfigError, match=r"one\.conf:3: .* set RamTierCompression=none too"):
        load("web", [file])
    file.write_text("[Swap]\nRamTierMax=0\nDiskTierCompression=none\n")
    assert load("web", [file]).compression == "none"
    file.write_text("[Swap]\nRamTierMax=1G\nRamTierCompression=none\nDiskTierCompression=none\n")
    assert load("web", [file]).compression == "none"
    file.write_text("[Swap]\nRamTierMax=1G\nRamTierCompression=none\n")
    assert load("web", [file]).compression == "none"
    assert load("web", []).compression == "lz4"


@pytest.mark.parametrize(
    "line",
    [
        "RamTierMax=101%",
        "RamTierMax=-1",
        "RamTierMax=1M",
        "RamTierMax=infinity",
        "RamTierMax=2097151",
        "RamTierAgeSec=0",
        "RamTierAgeSec=-1",
        "RamTierCompression=zip",
        "DiskTierCompression=zstd",
        "Encryption=maybe",
        "DiskTierMax=101%",
        "DiskTierMax=-1",
        "DiskTierMax=2047K",
        "DiskTierMax=all",
        "WriteBudgetPerDay=101%",
        "WriteBudgetPerDay=-1",
        "WriteBudgetPerDay=0",
        "WriteBudgetPerDay=0%",
        "WriteBudgetPerDay=1M",
        "WriteBudgetPerDay=10P",
    ],
)
def test_nonsense_of_the_tiers_is_refused_with_file_and_line(tmp_path, line):
    file = tmp_path / "one.conf"
    file.write_text(f"[Swap]\n{line}\n")
    with pytest.raises(ConfigError, match=r"one\.conf:2: "):
        load("web", [file])


@pytest.mark.parametrize(
    ("line", "has_budget"),
    [("WriteBudgetPerDay=2M", True), ("WriteBudgetPerDay=1%", True), ("WriteBudgetPerDay=infinity", False),
     ("WriteBudgetPerDay=", False), ("DiskTierMax=infinity", False), ("RamTierMax=2M", False)],
)  # fmt: skip
def test_the_smallest_budgets_and_none(tmp_path, line, has_budget):
    file = tmp_path / "one.conf"
    file.write_text(f"[Swap]\n{line}\n")
    assert load("web", [file]).has_write_budget is has_budget
