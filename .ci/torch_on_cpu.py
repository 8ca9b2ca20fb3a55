"""Install a CUDA build of torch without the gigabytes of CUDA, so that it runs on a CPU.

    python .ci/torch_on_cpu.py path/to/venv/bin/python 2.13.0

PyPI has no CPU build of torch for x86_64 Linux, and the CUDA build does not import without NVIDIA's libraries. This
script installs the wheel alone and puts stand-ins for those libraries beside it: each function of a stand-in reports
that there is no device. For tests only. It needs gcc and binutils.
"""

import re
import subprocess
import sys
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
CUDA_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
CUDA_SYMBOL = re.compile(r"_*(cu|nv|nccl)")
CUDA_REQUIREMENT = re.compile(r"Requires-Dist: (cuda|nvidia|triton|pytorch-triton)")


def printed(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def missing_libraries(files: list[Path]) -> dict[str, dict[str, str]]:
    """Map each CUDA library that torch links to, and does not bring, to the versions of its symbols.

    The inner dictionary maps a symbol to its version, "" if it has none. A symbol without a version could come from
    any library that has none, so each of them gets it.
    """
    present = {file.name for file in files}
    linked = [name for file in files for name in re.findall(r"NEEDED.*\[(.*)\]", printed("readelf", "-d", file))]
    missing = {name: {} for name in linked if name not in present and CUDA_LIBRARY.match(name)}
    library_of = {}  # of a version
    for file in files:
        library = None
        for kind, name in re.findall(r"(File|Name): (\S+)", printed("readelf", "-VW", file)):
            if kind == "File":
                library = name
            elif library in missing:
                library_of[name] = library
    without_version = [library for library in missing if library not in library_of.values()]
    for file in files:
        for line in printed("nm", "-D", "--undefined-only", file).splitlines():
            symbol, _, version = line.split()[-1].partition("@")
            if version in library_of:
                missing[library_of[version]][symbol] = version
            elif not version and CUDA_SYMBOL.match(symbol):
                for library in without_version:
                    missing[library][symbol] = ""
    return missing


def result_of(symbol: str) -> str:
    """A C expression: nothing for what the compiler calls at start, a text for a message, else an error."""
    if symbol.startswith("__cuda"):
        return "0"
    if re.search(r"(error|result|status).*(string|name)$|(get)(error|last).*(string|name)$", symbol, re.I):
        return '(long) "no CUDA here"'
    return str(NO_DEVICE)


def write_stand_in(folder: Path, library: str, symbols: dict[str, str]) -> None:
    code = "".join(f"long {name}(void) {{ return {result_of(name)}; }}\n" for name in sorted(symbols))
    versions = sorted(set(symbols.values()) - {""})
    script = folder / "versions.map"
    script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions) or "{ global: *; };")
    options = ["-shared", "-nostdlib", "-w", "-fno-builtin", f"-Wl,-soname,{library},--version-script={script}"]
    subprocess.run(["gcc", *options, "-x", "c", "-", "-o", folder / library], check=True, input=code, text=True)
    script.unlink()


def main(python: str, version: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", f"torch=={version}"], check=True)
    packages = Path(printed(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    folder = packages / "torch" / "lib"
    for library, symbols in missing_libraries(sorted(folder.glob("*.so*"))).items():
        write_stand_in(folder, library, symbols)
    # pip resolves what installed packages ask for
    for metadata in packages.glob("torch-*.dist-info/METADATA"):
        lines = metadata.read_text(encoding="utf-8").splitlines(keepends=True)
        metadata.write_text("".join(line for line in lines if not CUDA_REQUIREMENT.match(line)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
