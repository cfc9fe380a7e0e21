"""What commands' tests work on."""

import json

import pytest


@pytest.fixture(scope="session")
def make_workplace(tiny_llama, tiny_tokenizer):
    """Puts a model with its tokenizer into a folder, and rows into files by their names."""

    def make(folder, **files):
        tiny_llama(0).save_pretrained(folder / "model")
        tiny_tokenizer.save_pretrained(folder / "model")
        for name, rows in files.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make
