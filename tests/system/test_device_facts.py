"""Parsers on recorded lines of tegrastats and nvpmodel (Orin of JetPack 5, 6 and 7, Thor, older boards)."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.system.device_facts import (
    MIB,
    HostMemory,
    LoadMonitor,
    PowerMode,
    TegraSample,
    host_memory,
    load_of,
    parse_meminfo,
    parse_nvpmodel,
    parse_tegrastats,
)

LINES = {
    "AGX Orin, JetPack 6": (
        "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,5%@2112,off] "
        "EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off VIC 36%@115 OFA off PVA0_FREQ off APE 174 "
        "cpu@52.562C soc2@48.437C tj@52.562C VDD_GPU_SOC 2412mW/2412mW VDD_CPU_CV 1607mW/1607mW "
        "VIN_SYS_5V0 4707mW/4707mW",
        TegraSample(18207 * MIB, 62841 * MIB, 0, {"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707}),
        2412 + 1607 + 4707,
    ),
    "AGX Orin, JetPack 5": (
        "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] "
        "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C GPU@-256C tj@44.343C "
        "VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
        "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW",
        TegraSample(
            4321 * MIB,
            62801 * MIB,
            0,
            {"VDD_GPU_SOC": 2340, "VDD_CPU_CV": 390, "VIN_SYS_5V0": 4025, "VDDQ_VDD2_1V8AO": 301},
        ),
        7056,
    ),
    "AGX Orin, JetPack 7: three figures for a rail": (
        "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
        "GR3D_FREQ 12%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C gpu@47.625C/47.625C "
        "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW",
        TegraSample(20642 * MIB, 62817 * MIB, 12, {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}),
        13907,
    ),
    "Orin Nano, JetPack 6: VDD_IN holds the others": (
        "04-27-2026 14:59:42 RAM 775/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU [0%@729,0%@729] GR3D_FREQ 0% "
        "cpu@48.625C tj@49.218C VDD_IN 4761mW/4777mW VDD_CPU_GPU_CV 515mW/502mW VDD_SOC 1428mW/1428mW",
        TegraSample(775 * MIB, 7620 * MIB, 0, {"VDD_IN": 4761, "VDD_CPU_GPU_CV": 515, "VDD_SOC": 1428}),
        4761,
    ),
    "Thor: clocks without a load": (
        "RAM 4722/7844MB (lfb 1x512kB) EMC_FREQ 2%@1866 GR3D_FREQ @[1000,1000,1000] APE 150 VDD_GPU -392mW/0mW/10mW "
        "VDD_CPU_SOC_MSS 3924mW/3924mW/3924mW VIN 23000mW/22500mW/24000mW",
        TegraSample(4722 * MIB, 7844 * MIB, None, {"VDD_GPU": -392, "VDD_CPU_SOC_MSS": 3924, "VIN": 23000}),
        23000,
    ),
    "Nano, JetPack 4: no units": (
        "RAM 2462/3964MB (lfb 2x4MB) SWAP 362/1982MB (cached 6MB) CPU [52%@1479,41%@1479] EMC_FREQ 0% GR3D_FREQ 9% "
        "PLL@23.5C CPU@26C GPU@24C POM_5V_IN 3410/3410 POM_5V_GPU 451/451 POM_5V_CPU 1355/1355",
        TegraSample(2462 * MIB, 3964 * MIB, 9, {"POM_5V_IN": 3410, "POM_5V_GPU": 451, "POM_5V_CPU": 1355}),
        3410,
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_recorded_lines(name):
    line, expected, power = LINES[name]
    assert parse_tegrastats(line) == expected and expected.power_mw == power


@pytest.mark.parametrize("line", ["", "Starting tegrastats", "CPU [1%@2] GR3D_FREQ 3%", "RAM x/yMB"])
def test_other_lines_are_no_samples(line):
    assert parse_tegrastats(line) is None


RAIL_NAMES = st.sampled_from(["VDD_IN", "VIN", "VDD_GPU_SOC", "VDD_CPU_CV", "SYS5V"])
RAILS = st.dictionaries(RAIL_NAMES, st.integers(-9, 10**6))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.none() | st.integers(0, 100), RAILS, st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_what_is_printed_is_read_back(used, total, gpu, rails, figures):
    fields = [f"RAM {used}/{total}MB (lfb 3x4MB)", "SWAP 7/9MB (cached 1MB)", "GPU@44.5C"]
    fields.insert(1, "GR3D_FREQ @[306]" if gpu is None else f"GR3D_FREQ {gpu}%@[306]")
    fields += [f"{name} " + "/".join([f"{value}mW"] * (figures + 1)) for name, value in rails.items()]
    assert parse_tegrastats(" ".join(fields)) == TegraSample(used * MIB, total * MIB, gpu, rails)


@given(st.text(), st.text())
@settings(max_examples=30, deadline=None)
def test_any_text_is_survived(head, tail):
    for text in (head, head + "RAM 3/4MB" + tail, head + "NV Power Mode:" + tail, "MemTotal:" + tail):
        parse_tegrastats(text), parse_nvpmodel(text), parse_meminfo(text)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: MAXN\n0\n", PowerMode("MAXN", 0)),
        ("NV Power Mode: 15W\n0\n", PowerMode("15W", 0)),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", PowerMode("MODE_15W_6CORE", 2)),
        ("NVPM VERB: parsing done\nNVPM VERB: Current mode: NV Power Mode: 120W\r\n1\r\n", PowerMode("120W", 1)),
        ("NV Power Mode: 30W", PowerMode("30W", None)),
        ("NVPM ERROR: no access", None),
        ("", None),
    ],
)
def test_power_modes(text, mode):
    assert parse_nvpmodel(text) == mode


def test_memory_of_the_host():
    text = "MemTotal:        7650336 kB\nMemFree:          123 kB\nMemAvailable:    5123456 kB\nSwapTotal: 5 kB\n"
    assert parse_meminfo(text) == HostMemory(7650336 * 1024, 5123456 * 1024)
    assert parse_meminfo("MemTotal: 5 kB\n") is None
    here = host_memory()
    assert 0 < here.available_bytes <= here.total_bytes


def test_peaks_and_mean():
    samples = [parse_tegrastats(line) for line, _, _ in LINES.values()]
    load = load_of(samples)
    assert load.samples == 6 and load.peak_ram_bytes == 20642 * MIB and load.peak_gpu_percent == 12
    assert load.peak_power_mw == 23000
    assert load.mean_power_mw == pytest.approx(sum(power for *_, power in LINES.values()) / 6)
    assert load_of([]) is None
    silent = load_of([TegraSample(1, 2, None, {})])
    assert silent.peak_gpu_percent is None and silent.peak_power_mw is None and silent.mean_power_mw is None


def test_a_monitor_reads_a_running_command_and_stops_it(tmp_path):
    """A program that prints recorded lines for ever, as tegrastats does."""
    script = tmp_path / "tegrastats"
    line = LINES["Thor: clocks without a load"][0]
    loop = f"while True:\n    print({line!r}, flush=True)\n    time.sleep(0.01)\n"
    script.write_text(f"#!{sys.executable}\nimport time\n{loop}")
    script.chmod(0o755)
    with LoadMonitor(str(script)) as monitor:
        while len(monitor.samples) < 3:
            time.sleep(0.01)
    assert monitor._process.poll() is not None
    assert monitor.load.peak_power_mw == 23000 and monitor.load.samples >= 3


def test_a_monitor_is_silent_without_its_command(tmp_path):
    for command in (None, str(tmp_path / "none")):
        with LoadMonitor(command) as monitor:
            pass
        assert monitor.load is None
