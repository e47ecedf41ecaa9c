"""What a MODEL argument can mean by its form, and which names are safe."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai.domain.files import RemoteFile
from localai.errors import UsageError
from localai.naming import Kind, check_filename, check_repo, own_projectors, parse, projectors, variants

PUBLIC: dict[str, str] = {}
MIRROR = {"HF_ENDPOINT": "http://127.0.0.1:8080/hub"}

NAME_PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,20}[A-Za-z0-9_]", fullmatch=True).filter(
    lambda s: ".." not in s
)


@pytest.mark.parametrize(
    ("text", "kind", "target", "selector", "revision"),
    [
        ("qwen3-4b", Kind.NAME, "qwen3-4b", None, None),
        ("qwen3-4b:q4_k_m", Kind.NAME, "qwen3-4b", "q4_k_m", None),
        ("qwen3-4b@v2", Kind.NAME, "qwen3-4b", None, "v2"),
        ("llama3.2:3b", Kind.NAME, "llama3.2", "3b", None),
        ("Qwen/Qwen3-0.6B-GGUF", Kind.REPO, "Qwen/Qwen3-0.6B-GGUF", None, None),
        ("hf.co/Qwen/Qwen3-0.6B-GGUF:Q8_0", Kind.REPO, "Qwen/Qwen3-0.6B-GGUF", "Q8_0", None),
        ("huggingface.co/a/b", Kind.REPO, "a/b", None, None),
        ("a/b:dir/file@2.gguf", Kind.REPO, "a/b", "dir/file@2.gguf", None),
        ("a/b@main:q4_0", Kind.REPO, "a/b", "q4_0", "main"),
        ("a/b:q4_0@refs/pr/1", Kind.REPO, "a/b", "q4_0", "refs/pr/1"),
        ("https://huggingface.co/a/b", Kind.REPO, "a/b", None, None),
        ("https://hf.co/a/b/", Kind.REPO, "a/b", None, None),
        ("https://huggingface.co/a/b:q8_0", Kind.REPO, "a/b", "q8_0", None),
        ("https://huggingface.co/a/b/tree/v1.0", Kind.REPO, "a/b", None, "v1.0"),
        ("https://huggingface.co/a/b/tree/main/folder", Kind.REPO, "a/b", None, "main"),
        ("https://huggingface.co/a/b/blob/main/x%20y.gguf", Kind.REPO, "a/b", "x y.gguf", "main"),
        ("https://huggingface.co/a/b/resolve/main/d/x.gguf?download=true", Kind.REPO, "a/b", "d/x.gguf", "main"),
        ("https://huggingface.co/a/b/resolve/refs%2Fpr%2F2/x.gguf", Kind.REPO, "a/b", "x.gguf", "refs/pr/2"),
        ("https://huggingface.co/a/b/resolve/refs/pr/2/x.gguf", Kind.REPO, "a/b", "x.gguf", "refs/pr/2"),
        ("C:\\models\\x.gguf", Kind.PATH, "C:\\models\\x.gguf", None, None),
        ("C:/models/x.gguf", Kind.PATH, "C:/models/x.gguf", None, None),
        ("x.gguf", Kind.PATH, "x.gguf", None, None),
        ("models/é x.GGUF", Kind.PATH, "models/é x.GGUF", None, None),
        ("./x", Kind.PATH, "./x", None, None),
        ("../../etc/passwd", Kind.PATH, "../../etc/passwd", None, None),
        ("~/x.gguf", Kind.PATH, "~/x.gguf", None, None),
    ],
)
def test_forms_of_a_name(text: str, kind: Kind, target: str, selector: str | None, revision: str | None) -> None:
    found = parse(text, PUBLIC)
    assert (found.kind, found.target, found.selector, found.revision) == (kind, target, selector, revision)
    assert found.text == text


def test_addresses_of_the_configured_hub() -> None:
    found = parse("http://127.0.0.1:8080/hub/a/b/resolve/main/x.gguf", MIRROR)
    assert (found.target, found.selector) == ("a/b", "x.gguf")
    assert parse("https://huggingface.co/a/b", MIRROR).target == "a/b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "x:",
        "a/b@",
        ":q4",
        "a\0b",
        "a\nb",
        "\x1b]52;c;x\x07",
        "a/b/c",
        "a/..",
        "a/b:../x.gguf",
        "a/b:C:/x.gguf",
        "a/b@../../x",
        "a--b/c",
        "x" * 5000,
        "http://huggingface.co/a/b",
        "https://evil.example/a/b",
        "https://huggingface.co.evil.example/a/b",
        "https://huggingface.co@evil.example/a/b",
        "http://[::1",
        "https://huggingface.co/a",
        "https://huggingface.co/a/../b",
        "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/a/b/resolve/main/..%2F..%2Fx.gguf",
        "https://huggingface.co/a/b/resolve/main/x%00.gguf",
        "https://huggingface.co:99999/a/b",
        "ftp://huggingface.co/a/b",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, PUBLIC)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@given(st.text(max_size=60))
def test_any_text_is_taken_apart_or_refused(text: str) -> None:
    try:
        found = parse(text, PUBLIC)
    except UsageError:
        return
    assert found.target
    if found.kind is Kind.REPO:
        check_repo(found.target)


@given(NAME_PARTS, NAME_PARTS, st.sampled_from(["", ":Q4_K_M", "@main", ":q8_0@v1"]))
def test_every_spelling_of_a_repository_is_the_same(owner: str, name: str, suffix: str) -> None:
    repo = f"{owner}/{name}"
    if name.lower().endswith((".gguf", ".git")) or owner in {"api", "datasets", "spaces"} or owner.startswith("."):
        return
    plain = parse(repo + suffix, PUBLIC)
    for prefix in ("hf.co/", "https://huggingface.co/", "https://hf.co/"):
        other = parse(prefix + repo + suffix, PUBLIC)
        assert (other.target, other.selector, other.revision) == (plain.target, plain.selector, plain.revision)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../x.gguf",
        "a/../x.gguf",
        "/etc/x.gguf",
        "C:x.gguf",
        "C:\\x.gguf",
        "a\\b.gguf",
        "a//b.gguf",
        "./x.gguf",
        "a\0b.gguf",
        "a\x1b[31m.gguf",
        "a\u2028b.gguf",
        "x.gguf\n",
        "x.gguf.",
        "x.gguf ",
        "nul.gguf",
        "COM1",
        "x" * 300 + ".gguf",
        "d/" * 600 + "x.gguf",
        "\ud800.gguf",
    ],
)
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_filename(name)


@given(st.text(max_size=80))
def test_an_accepted_file_name_stays_below_its_folder(name: str) -> None:
    try:
        check_filename(name)
    except UsageError:
        return
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        assert not path.is_absolute()
        assert not path.drive
        assert ".." not in path.parts
        assert path.parts
    assert name.isprintable() or not any(ord(sign) < 32 for sign in name)


def test_ordinary_file_names_are_accepted() -> None:
    for name in ("Qwen3-0.6B-Q8_0.gguf", "UD-Q4_K_XL/x-00001-of-00002.gguf", "modèle é.gguf"):
        assert check_filename(name) == name


def files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 10, "0" * 64) for name in names]


def test_variants_are_files_or_whole_sets_of_shards() -> None:
    found = variants(
        files(
            "README.md",
            "m-Q8_0.gguf",
            "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "m-F16-00001-of-00003.gguf",
            "m-F16-00003-of-00003.gguf",
            "mmproj-F16.gguf",
            "m.imatrix.gguf",
            "plain.gguf",
        )
    )
    assert [(each.quantization, len(each.files)) for each in found] == [("Q4_K_M", 2), ("Q8_0", 1), ("unknown", 1)]
    assert found[0].files[0].name.endswith("00001-of-00002.gguf")
    assert found[0].size_bytes == 20


@given(st.lists(st.integers(1, 4), max_size=6), st.integers(1, 4))
def test_a_set_of_shards_counts_only_if_complete(indexes: list[int], total: int) -> None:
    names = {f"m-Q4_0-{index:05}-of-{total:05}.gguf" for index in indexes}
    found = variants(files(*names))
    complete = names >= {f"m-Q4_0-{index:05}-of-{total:05}.gguf" for index in range(1, total + 1)}
    if complete and all(index <= total for index in indexes):
        assert [len(each.files) for each in found] == [total]
    else:
        assert found == ()


def test_projectors_come_in_the_order_to_take_them() -> None:
    found = projectors(
        files("mmproj-F32.gguf", "m-Q4_0.gguf", "mmproj-BF16.gguf", "mmproj-model-f16.gguf", "mmproj.txt")
    )
    assert [file.name for file in found] == ["mmproj-model-f16.gguf", "mmproj-BF16.gguf", "mmproj-F32.gguf"]


DOWNLOADS = (
    "gemma-3-4b-it-Q4_K_M.gguf",
    "mmproj-gemma-3-4b-it-f16.gguf",
    "Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf",
    "mmproj-Qwen2.5-VL-7B-Instruct-Q8_0.gguf",
    "mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf",
    "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf",
    "llava-v1.6-mistral-7b.Q4_K_M.gguf",
    "llava-v1.6-mistral-7b-mmproj-f16.gguf",
    "moondream2-text-model-f16.gguf",
    "moondream2-mmproj-f16.gguf",
)


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("gemma-3-4b-it-Q4_K_M.gguf", ["mmproj-gemma-3-4b-it-f16.gguf"]),
        (
            "Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf",
            ["mmproj-Qwen2.5-VL-7B-Instruct-f16.gguf", "mmproj-Qwen2.5-VL-7B-Instruct-Q8_0.gguf"],
        ),
        ("DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf", []),
        ("llava-v1.6-mistral-7b.Q4_K_M.gguf", ["llava-v1.6-mistral-7b-mmproj-f16.gguf"]),
        ("moondream2-text-model-f16.gguf", ["moondream2-mmproj-f16.gguf"]),
    ],
)
def test_each_model_of_a_folder_has_its_own_projectors(model: str, own: list[str]) -> None:
    assert [each.name for each in own_projectors(model, files(*DOWNLOADS))] == own


@pytest.mark.parametrize("name", ["mmproj-F16.gguf", "mmproj-model-f16-4B.gguf", "MMPROJ-other-bf16.GGUF"])
def test_a_projector_of_no_known_name_may_be_that_of_any(name: str) -> None:
    for model in ("gemma-3-4b-it-q4_0.gguf", "mistral-7b.gguf"):
        assert [each.name for each in own_projectors(model, files(name, "gemma-3-4b-it-q4_0.gguf", "mistral-7b.gguf"))]
