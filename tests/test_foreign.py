"""Readers of other programs' stores: captured layouts are found, hostile ones are left out with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import hub_snapshot, model_bytes, ollama_store, projector_bytes, sha256, shard_bytes

from localai.foreign import folders, hf, ollama

LIBRARY = "registry.ollama.ai/library"
COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"
OTHER = "0" * 40


def test_ollama_names_files_and_claims(tmp_path: Path) -> None:
    content = model_bytes()
    root = ollama_store(
        tmp_path,
        {
            f"{LIBRARY}/llama3.2/3b": content,
            f"{LIBRARY}/qwen3/latest": model_bytes("b"),
            "registry.ollama.ai/someone/theirs/q4": model_bytes("c"),
            "hf.co/owner/repo-GGUF/Q8_0": model_bytes("d"),
        },
        projector_bytes(),
    )
    finds = ollama.find(root)
    names = {model.model for model in finds.models}
    assert names == {"llama3.2:3b", "qwen3", "someone/theirs:q4", "hf.co/owner/repo-GGUF:Q8_0"}
    first = next(model for model in finds.models if model.model == "llama3.2:3b")
    assert first.files[0].path == root / "blobs" / f"sha256-{sha256(content)}"
    assert first.files[0].sha256 == sha256(content)
    assert first.projectors[0].path.read_bytes() == projector_bytes()
    assert (first.source, finds.left_out, finds.folders) == ("ollama", [], [root])


def test_ollama_links_and_lists_of_its_newer_layout(tmp_path: Path) -> None:
    content = model_bytes()
    root = ollama_store(tmp_path, {f"{LIBRARY}/old/latest": content})
    manifest = (root / "manifests" / LIBRARY / "old" / "latest").read_bytes()
    digest = sha256(manifest)
    (root / "blobs" / f"sha256-{digest}").write_bytes(manifest)
    listing = {
        "mediaType": "application/vnd.ollama.manifest.list.v2+json",
        "manifests": [
            {"runner": "mlx", "layers": [{"mediaType": "application/vnd.ollama.image.tensor", "digest": "x"}]},
            {"runner": "ollama", "digest": f"sha256:{digest}"},
        ],
    }
    newer = root / "manifests-v2" / LIBRARY / "new"
    newer.mkdir(parents=True)
    (newer / "1b").write_text(json.dumps(listing))
    (newer / "2b").symlink_to(Path(os.path.relpath(root / "blobs" / f"sha256-{digest}", newer)))
    found = {model.model: model.files[0].path.read_bytes() for model in ollama.find(root).models}
    assert found == {"new:1b": content, "new:2b": content, "old": content}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b'{"layers": 7}',
        b'{"layers": [7, {"mediaType": 1}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
        b'{"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": [{"digest": "sha256:zz"}]}',
        b'{"mediaType": "application/vnd.ollama.manifest.list.v2+json", "manifests": {"a": 1}}',
        b" " * 2_000_000 + b"{}",
    ],
)
def test_ollama_hostile_manifests_are_left_out(tmp_path: Path, manifest: bytes) -> None:
    path = tmp_path / "manifests" / LIBRARY / "evil" / "latest"
    path.parent.mkdir(parents=True)
    path.write_bytes(manifest)
    finds = ollama.find(tmp_path)
    assert finds.models == []
    assert [each.path for each in finds.left_out] == [path]


def test_ollama_a_manifest_that_leads_out_of_the_store_is_not_read(tmp_path: Path) -> None:
    store = ollama_store(tmp_path / "store", {f"{LIBRARY}/good/latest": model_bytes()})
    (tmp_path / "secret.json").write_bytes((store / "manifests" / LIBRARY / "good" / "latest").read_bytes())
    evil = store / "manifests" / LIBRARY / "evil"
    evil.mkdir()
    (evil / "latest").symlink_to(tmp_path / "secret.json")
    (evil / "bad name\x1b[2J").write_bytes(b"{}")
    finds = ollama.find(store)
    assert [model.model for model in finds.models] == ["good"]
    assert len(finds.left_out) == 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["layers", "manifests", "mediaType", "digest", "size"]), inner)
        ),
    )
)
def test_ollama_any_json_is_read_or_left_out(tmp_path: Path, value: object) -> None:
    path = tmp_path / "manifests" / LIBRARY / "any" / "latest"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    assert ollama.find(tmp_path).models == []


def test_where_programs_keep_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ollama.roots({"OLLAMA_MODELS": "/big/models"}, "linux") == (Path("/big/models"),)
    assert Path("/usr/share/ollama/.ollama/models") in ollama.roots({}, "linux")
    assert ollama.roots({}, "darwin") == (tmp_path / ".ollama/models",)
    home = {"HOME": str(tmp_path)}
    assert folders.lmstudio_roots(home) == (tmp_path / ".lmstudio/models", tmp_path / ".cache/lm-studio/models")
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / ".lmstudio/settings.json").write_text('{"downloadsFolder": "/elsewhere/models"}')
    assert folders.lmstudio_roots(home)[0] == Path("/elsewhere/models")
    assert folders.llamacpp_roots({"LLAMA_CACHE": "/c"}, "linux") == (Path("/c"),)
    assert folders.llamacpp_roots(home, "linux") == (tmp_path / ".cache/llama.cpp",)
    assert folders.llamacpp_roots(home, "darwin") == (tmp_path / "Library/Caches/llama.cpp",)
    assert folders.llamacpp_roots({"LOCALAPPDATA": "/l"}, "win32") == (Path("/l/llama.cpp"),)


def test_lmstudio_by_publisher_and_repository(tmp_path: Path) -> None:
    place = tmp_path / "lmstudio-community" / "Qwen3-4B-GGUF"
    place.mkdir(parents=True)
    (place / "Qwen3-4B-Q4_K_M.gguf").write_bytes(model_bytes())
    (place / "mmproj-model-f16.gguf").write_bytes(projector_bytes())
    (tmp_path / "loose-Q8_0.gguf").write_bytes(model_bytes("loose"))
    finds = folders.find_lmstudio(tmp_path)
    assert sorted(model.model for model in finds.models) == ["lmstudio-community/Qwen3-4B-GGUF", "loose"]
    assert [len(model.projectors) for model in finds.models] == [0, 1]


def test_llamacpp_flat_cache_with_its_manifests(tmp_path: Path) -> None:
    (tmp_path / "manifest=ggml-org=gemma-3-GGUF=latest.json").write_text("{}")
    (tmp_path / "ggml-org_gemma-3-GGUF_gemma-3-Q4_K_M.gguf").write_bytes(model_bytes())
    (tmp_path / "ggml-org_gemma-3-GGUF_gemma-3-Q4_K_M.gguf.etag").write_text("x")
    (tmp_path / "by-url-Q8_0.gguf").write_bytes(model_bytes("b"))
    (tmp_path / "partial.gguf.downloadInProgress").write_bytes(b"GGUF")
    assert sorted(model.model for model in folders.find_llamacpp(tmp_path).models) == [
        "by-url",
        "ggml-org/gemma-3-GGUF",
    ]


def test_shards_are_one_model_and_missing_ones_are_told_once(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"whole-Q4_0-0000{number}-of-00002.gguf").write_bytes(shard_bytes(number - 1))
    for number in (1, 2):
        (tmp_path / f"lacking-Q4_0-0000{number}-of-00003.gguf").write_bytes(shard_bytes(number - 1))
    (tmp_path / "broken.gguf").symlink_to(tmp_path / "nothing")
    finds = folders.find(tmp_path, "file", lambda path: folders.name_of(path.name))
    assert [(model.model, len(model.files)) for model in finds.models] == [("whole", 2)]
    assert sorted(each.reason for each in finds.left_out) == [
        "it is not a file, or a link to nothing",
        "not all of its 3 shards are here",
    ]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("my_foo_q4_k_m.gguf", "my_foo"),
        ("Qwen3-UD-Q4_K_XL.gguf", "Qwen3"),
        ("big-Q4_K_M-00001-of-00003.gguf", "big"),
        ("a:b@c-q4_k_m.gguf", "a-b-c"),
        ("../.gguf", "model"),
        ("\x1b[2J.gguf", "[2J"),
        ("模型-F16.gguf", "模型"),
    ],
)
def test_names_from_files(file: str, name: str) -> None:
    assert folders.name_of(file) == name.replace("[", "-").strip("-")


@given(st.text())
def test_any_file_name_gives_a_name_that_can_be_typed(text: str) -> None:
    name = folders.name_of(text)
    assert name
    assert not set(name) & set(":@/\\\n\x1b\0")
    assert not name.startswith((".", "~", "-"))


def test_the_hub_cache_newest_revision_first(tmp_path: Path) -> None:
    content = model_bytes()
    hub_snapshot(tmp_path, "o/m-GGUF", OTHER, {"m-Q4_0.gguf": content, "old-Q8_0.gguf": model_bytes("old")}, ref=None)
    hub_snapshot(tmp_path, "o/m-GGUF", COMMIT, {"m-Q4_0.gguf": content, "README.md": b"hi"})
    (tmp_path / "models--a--b--c").mkdir()
    (tmp_path / "datasets--o--d").mkdir()
    finds = hf.find(tmp_path)
    assert [(model.repo, model.commit, model.files[0].name) for model in finds.models] == [
        ("o/m-GGUF", COMMIT, "m-Q4_0.gguf"),
        ("o/m-GGUF", OTHER, "old-Q8_0.gguf"),
    ]
    assert finds.models[0].files[0].sha256 == sha256(content)
    assert [each.path.name for each in finds.left_out] == ["models--a--b--c"]


def test_the_hub_cache_hostile_names_and_lost_blobs(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path, "o/m", COMMIT, {"m-Q4_0.gguf": model_bytes()})
    (snapshot / "evil\x1b]0;x-Q4_0.gguf").write_bytes(b"GGUF")
    (snapshot / "lost-Q8_0.gguf").symlink_to("../../blobs/none")
    finds = hf.find(tmp_path)
    assert [model.files[0].name for model in finds.models] == ["m-Q4_0.gguf"]
    assert sorted(each.reason for each in finds.left_out) == ["it is a link to nothing", "its name is not safe"]


def test_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    for reader in (ollama.find, folders.find_lmstudio, folders.find_llamacpp, hf.find):
        assert reader(tmp_path / "none").folders == []


def test_a_user_without_a_home_has_no_folders_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does where nobody knows the user
    assert ollama.roots({}, "linux")[1:]
    assert folders.lmstudio_roots({})
    assert folders.llamacpp_roots({}, "linux")
